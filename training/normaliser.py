"""Statistics of the training clips, by which their streams are scaled."""

import fcntl
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from featurizers.store import publish
from training.batch import Sample

LIMIT = 5.0
"""Normalised values end here, in standard deviations: one broken sensor must not drown a batch."""


@dataclass(frozen=True, slots=True)
class Normaliser:
    """Mean and standard deviation of each dimension of each stream: float32 [D] by stream.

    Streams that a recipe takes raw have none.
    """

    mean: Mapping[str, NDArray[np.float32]]
    std: Mapping[str, NDArray[np.float32]]

    @staticmethod
    def identity(widths: Mapping[str, int]) -> "Normaliser":
        """One that changes nothing within the limit, for data that are normalised already."""
        return Normaliser(
            mean={name: np.zeros(width, np.float32) for name, width in widths.items()},
            std={name: np.ones(width, np.float32) for name, width in widths.items()},
        )

    @staticmethod
    def measure(samples: Iterable[Sample], widths: Mapping[str, int]) -> "Normaliser":
        """Statistics over all valid steps of unnormalised samples.

        Sums are float64 and merged sample by sample (Chan, Golub and LeVeque, "Updating formulae
        and a pairwise algorithm for computing sample variances", 1979), so a large mean costs no
        digits. A dimension that does not vary has standard deviation 1; a stream without any step
        has mean 0. Streams without a width are left out.
        """
        moments = {name: _Moments.empty(width) for name, width in widths.items()}
        for sample in samples:
            for name, values in sample.values.items():
                if values is not None and name in moments:
                    valid = sample.valid.get(name)
                    moments[name] = moments[name].plus(values if valid is None else values[valid])
        return Normaliser(
            mean={name: each.mean.astype(np.float32) for name, each in moments.items()},
            std={name: each.std().astype(np.float32) for name, each in moments.items()},
        )

    def apply(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalise steps [T, D] of a stream, and cut what lies beyond 5 standard deviations.

        A raw stream stays as it is.
        """
        if name not in self.mean:
            return values
        scaled: NDArray[np.float32] = values - self.mean[name]
        scaled /= self.std[name]
        return np.clip(scaled, -LIMIT, LIMIT, out=scaled)

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        path.write_bytes(self.to_bytes())

    @staticmethod
    def load(path: Path) -> "Normaliser":
        """Read what `save` wrote."""
        return Normaliser.from_bytes(path.read_bytes())

    def to_bytes(self) -> bytes:
        """As safetensors."""
        arrays = {f"{name}.mean": values for name, values in self.mean.items()}
        arrays.update({f"{name}.std": values for name, values in self.std.items()})
        return save(arrays)

    @staticmethod
    def from_bytes(content: bytes) -> "Normaliser":
        """The one of which these are `to_bytes`."""
        arrays = load(content)
        return Normaliser(
            mean={n.removesuffix(".mean"): a for n, a in arrays.items() if n.endswith(".mean")},
            std={n.removesuffix(".std"): a for n, a in arrays.items() if n.endswith(".std")},
        )


@dataclass(frozen=True, slots=True)
class _Moments:
    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]  # sum of squared distances from the mean

    @staticmethod
    def empty(width: int) -> "_Moments":
        return _Moments(0, np.zeros(width), np.zeros(width))

    def plus(self, values: NDArray[np.float32]) -> "_Moments":
        if not len(values):
            return self
        steps = values.astype(np.float64)
        mean = steps.mean(axis=0)
        squares = ((steps - mean) ** 2).sum(axis=0)
        total = self.count + len(steps)
        gap = mean - self.mean
        return _Moments(
            total,
            self.mean + gap * (len(steps) / total),
            self.squares + squares + gap**2 * (self.count * len(steps) / total),
        )

    def std(self) -> NDArray[np.float64]:
        std = np.sqrt(self.squares / max(self.count, 1))
        # Below this, what varies is rounding of float32 features.
        still = std <= 1e-6 * np.maximum(1.0, np.abs(self.mean))
        return np.where(still, 1.0, std)


def measured_once(folder: Path, measure: Callable[[], Normaliser]) -> Normaliser:
    """The normaliser that a folder keeps; measured and put there by the first who asks.

    Others wait meanwhile. The file is named by its content, so that a damaged one is measured anew.

    Args:
        folder: Named by all that decides the statistics, such as a run's own.
        measure: Reads all training clips.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".normaliser.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in sorted(folder.glob("normaliser-*.safetensors")):
            content = path.read_bytes()
            if path.name == _name(content):
                return Normaliser.from_bytes(content)
        made = measure()
        content = made.to_bytes()
        publish(folder / _name(content), content)
    return made


def _name(content: bytes) -> str:
    return f"normaliser-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
