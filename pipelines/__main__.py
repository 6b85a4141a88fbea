"""The command line, of `pipelines.commands`. Exit code 0 done, 1 failed, 2 the input was wrong."""

if __name__ == "__main__":
    from pipelines import entry

    entry.main()  # comes back here by importing this module; does not return

import os
import sys
from collections.abc import Callable

import typer

from featurizers.dataset import DatasetError
from featurizers.egemaps import MissingPackageError
from featurizers.encoding import EncoderMemoryError
from featurizers.manifest import CorruptShardError
from featurizers.store import StorageError, shown
from pipelines.commands import cluster, data, exchange, flows, jobs, models
from pipelines.experiment import FailedError, InputError
from pipelines.stopping import stoppable
from tracking.ledger import LostRaceError
from tracking.mlflow_store import NoStoreError, StoreError
from tracking.registry import UnknownModelError
from training.checkpoint import CheckpointError

# Commands import what they call: `--help` and a wrong file name need neither torch nor a table.
WRONG_INPUT = (InputError, DatasetError, NoStoreError, UnknownModelError)
FAILED = (
    FailedError,
    StorageError,
    EncoderMemoryError,
    MissingPackageError,
    OSError,  # permissions and the like, wherever they are met; its text names the file
    StoreError,
    CorruptShardError,
    LostRaceError,
    CheckpointError,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Raw clips (video, audio, transcript) to trained, tracked and promoted fusion models.",
)

for group in (data, exchange, models, flows, cluster, jobs):
    app.add_typer(group.app)


def main() -> None:
    """Run a command; turn what went wrong into one line and an exit code."""
    # Joblib, tokenizers and friends need not tell that they forked.
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.exit(stoppable(lambda: _called(lambda: app(standalone_mode=True)), _leave))


def _leave() -> None:
    """End what was started for the command."""
    if "ray" in sys.modules:
        from pipelines.executors import stop_ray

        stop_ray()


def _called(call: Callable[[], None]) -> int:
    try:
        call()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except WRONG_INPUT as error:
        print(f"fuseline: {_line(error)}", file=sys.stderr)
        return 2
    except FAILED as error:
        print(f"fuseline: {_line(error)}", file=sys.stderr)
        return 1
    return 0


def _line(error: BaseException) -> str:
    # What commands print ends in logs of jobs, and a path may be an address.
    return shown(" ".join(str(error).split()))
