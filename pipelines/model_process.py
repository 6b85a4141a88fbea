"""A registered model in a process of its own, with the code that it carries."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from featurizers.pretrained import FOLDERS
from pipelines import HOME
from pipelines.experiment import FailedError, InputError

# The process imports no package of ours but tracking: featurizers and training come with the model.
# Whatever its libraries print goes to its standard error: a line of its output is an answer.
_PROGRAM = """
import json, os, sys
out = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)
from tracking.mlflow_store import NoStoreError, StoreError, load
from tracking.registry import UnknownModelError

def say(kind, value):
    print(json.dumps({kind: value}), file=out, flush=True)

def features(rows, stem):
    import numpy
    answer = []
    for number, row in enumerate(rows):
        found = {}
        for stream, outcome in predictor.features(row).items():
            found[stream] = outcome.state
            if outcome.feature is not None:
                numpy.save(f"{stem}.{number}.{stream}.values.npy", outcome.feature.values)
                numpy.save(f"{stem}.{number}.{stream}.times.npy", outcome.feature.times)
        answer.append(found)
    return answer

uri, model = json.loads(sys.stdin.readline())
try:
    predictor = load(uri, model).unwrap_python_model().predictor
except (NoStoreError, UnknownModelError) as error:
    say("wrong", str(error))
except (StoreError, OSError, ImportError) as error:
    say("failed", str(error))
else:
    say("answer", "ready")
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if asked["do"] == "features":
                say("answer", features(asked["rows"], asked["stem"]))
            else:
                say("answer", getattr(predictor, asked["do"])(asked["rows"]))
        except predictor.Refused as error:
            say("wrong", str(error))
"""
LAST_WORDS = 4000


class ScoringFailedError(FailedError):
    """No answer: a damaged model, a store that is out of reach, a bug, or too little memory."""


class ProcessEndedError(ScoringFailedError):
    """The process of a model ended while it was asked.

    Attributes:
        short: How it ended, in one line.
    """

    def __init__(self, model: str, code: int, said: str) -> None:
        super().__init__(f"the process of {model} ended with code {code}:\n{said}")
        last = said.rpartition("\n")[2][:200]
        self.short = f"the model's process ended with code {code}" + (f": {last}" if last else "")


class ModelProcess:
    """A registered model that was loaded once, and is asked again and again. Close it.

    Args:
        uri: The tracking server.
        model: "models:/NAME@ALIAS", "models:/NAME/VERSION" or "models:/m-...".
        weights: Where the weights of encoders lie that are not of the hub.

    Raises:
        InputError: No such store or model.
        ScoringFailedError: The model is damaged, or its store cannot be reached.
    """

    def __init__(self, uri: str, model: str, weights: Sequence[str] = ()) -> None:
        self._model = model
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        # Its copy of the model and all scratch: it is killed, and tidies nothing up itself.
        self._scratch = tempfile.TemporaryDirectory(prefix="fuseline-model-")
        home = [str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])]
        # -P keeps the current folder, and a training/ that may lie there, off the path.
        self._process = subprocess.Popen(  # noqa: S603 - our own program text, no shell
            [sys.executable, "-P", "-W", "ignore", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            encoding="utf-8",
            env={
                **os.environ,
                "TOKENIZERS_PARALLELISM": "false",
                "PYTHONPATH": os.pathsep.join(home),
                "TMPDIR": self._scratch.name,
            }
            | listing(weights),
        )
        try:
            # Not as arguments, which all of the machine can list: the address may hold a password.
            self._ask([uri, model])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "ModelProcess":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                _open(pipe).close()
        self._said.close()
        self._scratch.cleanup()

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What `training.predict.Predictor.predict` gives. Raises as `explain`."""
        return list(self._ask({"do": "predict", "rows": list(rows)}))

    def explain(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What `training.predict.Predictor.explain` gives.

        Raises:
            InputError: Rows that no clip can be made of.
            ProcessEndedError: The process ended.
        """
        return list(self._ask({"do": "explain", "rows": list(rows)}))

    def features(self, rows: Sequence[Mapping[str, Any]], stem: Path) -> list[dict[str, str]]:
        """The state of each stream by row; see `saved` for the numbers. Raises as `explain`."""
        return list(self._ask({"do": "features", "rows": list(rows), "stem": str(stem)}))

    def _ask(self, question: object) -> Any:  # noqa: ANN401 - any JSON
        try:
            pipe = _open(self._process.stdin)
            pipe.write(json.dumps(question) + "\n")
            pipe.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._answer()

    def _answer(self) -> Any:  # noqa: ANN401 - any JSON
        line = _open(self._process.stdout).readline()
        if not line.endswith("\n"):
            raise self._ended()
        found = json.loads(line)
        if "wrong" in found:
            raise InputError(found["wrong"])
        if "failed" in found:
            raise ScoringFailedError(found["failed"])
        return found["answer"]

    def _ended(self) -> ProcessEndedError:
        code = self._process.wait()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip()[-LAST_WORDS:]
        return ProcessEndedError(self._model, code, said)


def saved(stem: Path, number: int, stream: str) -> tuple[Path, Path]:
    """The files of values and of times of a feature that `ModelProcess.features` computed."""
    return Path(f"{stem}.{number}.{stream}.values.npy"), Path(f"{stem}.{number}.{stream}.times.npy")


def listing(weights: Sequence[str]) -> dict[str, str]:
    """What tells a process where weights lie, beside the places that it is told of anyway."""
    listed = [*weights, *filter(None, [os.environ.get(FOLDERS)])]
    return {FOLDERS: os.pathsep.join(listed)} if listed else {}


def _open(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise ValueError("the process was started without its pipes")
    return pipe
