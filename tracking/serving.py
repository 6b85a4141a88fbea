"""The code that a registered model is loaded by: it finds the predictor and hands rows to it.

MLflow copies this file into the model and runs it there, without the package around it. So it
imports nothing of ours by name: `predictor.json` beside the weights says what to import.

In a process of one's own, rows may name any file of the machine. A server of MLflow takes media as
bytes; files only below the folder that FUSELINE_MEDIA_ROOT names when it starts, which also holds
for a process of one's own where it is set.
"""

import hashlib
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException  # noqa: TID253 - only MLflow runs this file
from mlflow.models import set_model  # noqa: TID253 - only MLflow runs this file
from mlflow.pyfunc.model import PythonModel, PythonModelContext  # noqa: TID253 - only MLflow runs it

ROOT = "FUSELINE_MEDIA_ROOT"
# What a scoring server of MLflow sets for the process that answers (3.17.2).
# Held by test_a_server_takes_bytes_and_no_paths_but_those_under_its_root.
SERVED = "__pyfunc_model_path__"
# One of these must be there; all are optional for MLflow, which knows no "one of".
_GIVEN = ("media", "media_bytes", "transcript", "transcript_file")
_PREFIXES = ("features:", "stream:")


class Scorer(PythonModel):
    """A predictor behind MLflow's model interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the predictor that `predictor.json` names, from the model's own code.

        Raises:
            OSError: Code or weights are not those that were saved, or compiled code lies beside
                them that cannot be removed.
            ImportError: The predictor's code, or other code that is bundled with the model, was
                imported from elsewhere.
        """
        folder = Path(context.artifacts["model"])
        _check_files(_home(folder))
        _drop_compiled(_home(folder))
        name = json.loads((folder / "predictor.json").read_text())["predictor"]
        module_name, _, class_name = name.partition(":")
        # Before, so that no strange code is run; and after, for what was found on the path.
        _check_home(folder, module_name)
        module = importlib.import_module(module_name)
        _check_home(folder, module_name)
        self.predictor = getattr(module, class_name).load(folder)
        root = os.environ.get(ROOT)
        self.paths = bool(root) or SERVED not in os.environ
        self.root = Path(root) if root else None

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """A row of predictions for each row; empty cells are as if the column were not there.

        Raises:
            MlflowException: The rows are not such as the model takes; a server answers 400 to it.
        """
        names = [str(name) for name in model_input.columns]
        if not any(name in _GIVEN or name.startswith(_PREFIXES) for name in names):
            raise _refused(
                f"there is none of the columns {', '.join(_GIVEN)}, stream:NAME or features:NAME; "
                f"found {', '.join(names) or 'no column that the model knows'}"
            )
        rows = [
            {str(name): cell for name, value in row.items() if not _is_empty(cell := _cell(value))}
            for row in model_input.to_dict("records")
        ]
        try:
            found = self.predictor.predict(rows, paths=self.paths, root=self.root)
        except self.predictor.Refused as error:
            raise _refused(str(error)) from None
        return pd.DataFrame(found)


def _cell(value: Any) -> Any:  # noqa: ANN401 - a cell of any type
    """The cell; of a request of `instances`, MLflow makes each an array of one."""
    wrapped = not pd.api.types.is_scalar(value) and len(value) == 1
    return value[0] if wrapped and isinstance(value[0], str | bytes | float) else value


def _is_empty(value: object) -> bool:
    return value is None or bool(pd.api.types.is_scalar(value) and pd.isna(value))


def _refused(text: str) -> MlflowException:
    refused: MlflowException = MlflowException.invalid_parameter_value(text)
    return refused


def _home(folder: Path) -> Path:
    """The model's folder, in which the predictor's lies."""
    return next(parent for parent in folder.parents if (parent / "MLmodel").is_file())


def _check_files(home: Path) -> None:
    """Raise when the code or the weights are not those that were saved, or others lie beside them.

    That is against damage, and against what was slipped in; that nobody wrote the model and its
    list anew is known by the digest in the registry, which `fuseline` checks before it loads.
    """
    listed = home / "files.json"
    if not listed.is_file():
        raise OSError(f"{home}: there is no {listed.name}; the model was not saved whole")
    wanted: dict[str, str] = json.loads(listed.read_text())
    folders = {name.partition("/")[0] for name in wanted}
    there = [
        file.relative_to(home).as_posix()
        for folder in sorted(folders)
        for file in sorted((home / folder).rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    ]
    if strange := sorted(set(there) - set(wanted)):
        raise OSError(f"{home / strange[0]} is no file of this model; remove it")
    for name, digest in wanted.items():
        file = home / name
        if not file.is_file() or _sha256(file) != digest:
            state = "is not as it was saved" if file.is_file() else "is missing"
            raise OSError(f"{file} {state} (sha256 {digest[:12]}); fetch the model anew")


def _drop_compiled(home: Path) -> None:
    """Remove compiled code: Python would run it sooner than the sources, and no digest is of it."""
    if sys.pycache_prefix is not None:
        return  # Python looks for it elsewhere
    for cache in sorted(home.rglob("__pycache__")):
        try:
            if cache.is_symlink():
                cache.unlink()
                continue
            # One by one: another process may load the model meanwhile, and write its own.
            for file in sorted(cache.glob("*.pyc")):
                file.unlink(missing_ok=True)
        except OSError as error:
            raise OSError(
                f"{cache} holds compiled code in place of the sources, and cannot be removed "
                f"({error.strerror}); remove it, or set PYTHONPYCACHEPREFIX to an empty folder"
            ) from None


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _check_home(folder: Path, module_name: str) -> None:
    """Raise when the predictor, or other bundled code, is imported but not from the bundle."""
    bundle = (_home(folder) / "code").resolve()
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
