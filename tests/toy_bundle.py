"""A model that is a few lines of code and a number, for tests of what keeps and loads models."""

from tracking import mlflow_store

PREDICTOR = """
import json
from pathlib import Path
from toybundle.words import count

class Predictor:
    Refused = ValueError

    def __init__(self, bias):
        self.bias = bias

    @staticmethod
    def load(folder):
        return Predictor(json.loads((Path(folder) / "bias.json").read_text()))

    def predict(self, rows, *, paths, root):
        return [
            {"score": self.bias + count(row.get("transcript", "")), "seen": ",".join(sorted(row))}
            for row in rows
        ]
"""

INPUTS = (("media", "string", True), ("transcript", "string", False), ("start", "double", False))
OUTPUTS = (("score", "double"), ("seen", "string"))


def make_bundle(root):
    """A predictor's package, and beside it the folder that it loads."""
    package, model = root / "toybundle", root / "trained"
    package.mkdir()
    model.mkdir()
    (package / "__init__.py").touch()
    (package / "predict.py").write_text(PREDICTOR)
    (package / "words.py").write_text("def count(text):\n    return float(len(text.split()))\n")
    (model / "predictor.json").write_text('{"predictor": "toybundle.predict:Predictor"}')
    (model / "bias.json").write_text("0.25")
    return root


def log_toy(run, bundle):
    """Log the model with a run; returns its address."""
    return mlflow_store.log_model(
        run,
        bundle / "trained",
        name="model",
        code=[bundle / "toybundle"],
        inputs=INPUTS,
        outputs=OUTPUTS,
        requirements=["pandas"],
    )
