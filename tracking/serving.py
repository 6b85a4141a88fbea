"""The code that a registered model is loaded by: it finds the predictor and hands rows to it.

MLflow copies this file into the model and runs it there, without the package around it. So it
imports nothing of ours by name: `predictor.json` beside the weights says what to import.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model  # noqa: TID253 - only MLflow runs this file
from mlflow.pyfunc.model import PythonModel, PythonModelContext  # noqa: TID253 - only MLflow runs it


class Scorer(PythonModel):
    """A predictor behind MLflow's model interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the predictor that `predictor.json` names, from the model's own code.

        Raises:
            ImportError: The predictor's code, or other code that is bundled with the model, was
                imported from elsewhere.
        """
        folder = Path(context.artifacts["model"])
        name = json.loads((folder / "predictor.json").read_text())["predictor"]
        module_name, _, class_name = name.partition(":")
        # Before, so that no strange code is run; and after, for what was found on the path.
        _check_home(folder, module_name)
        module = importlib.import_module(module_name)
        _check_home(folder, module_name)
        self.predictor = getattr(module, class_name).load(folder)

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """A row of predictions for each row; empty cells are as if the column were not there."""
        rows = [
            {str(name): value for name, value in row.items() if not pd.isna(value)}
            for row in model_input.to_dict("records")
        ]
        return pd.DataFrame(self.predictor.predict(rows))


def _check_home(folder: Path, module_name: str) -> None:
    """Raise when the predictor, or other bundled code, is imported but not from the bundle."""
    home = next(parent for parent in folder.parents if (parent / "MLmodel").is_file())
    bundle = (home / "code").resolve()
    if not bundle.is_dir():
        return
    names = {path.stem for path in bundle.iterdir()} | {module_name.partition(".")[0]}
    for name in sorted(names & set(sys.modules)):
        found = Path(sys.modules[name].__file__ or "").resolve()
        if not found.is_relative_to(bundle):
            raise ImportError(
                f"{name!r} was imported from {found}, but the model brings its own in {bundle}; "
                f"load the model in a fresh process that has not imported {name!r}"
            )


set_model(Scorer())
