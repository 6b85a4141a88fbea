"""What is wrong with a stream, and when it is too much."""

from dataclasses import dataclass

from featurizers.clip import BadClipError
from featurizers.placing import Taker

MIN_THERE = 0.5  # share of what the header promises
# Headers round, and encoders put some sound before and after: this much is not missing.
SLACK_S = 0.25
SLACK_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a stream, though too little to give the clip up.

    Packets that cannot be decoded, times out of order, a gap in the sound, a file that was cut.
    """

    message: str


@dataclass(frozen=True, slots=True)
class Told:
    """Of a wanted span, in seconds: how much the header promises and how much is there."""

    promised: float
    there: float

    @property
    def much_is_missing(self) -> bool:
        """Whether less is there than a sample may be made of."""
        return self.there < MIN_THERE * self.promised

    @property
    def remarks(self) -> list[str]:
        """Where both differ by more than rounding does."""
        slack = max(SLACK_S, SLACK_SHARE * self.promised)
        if self.there < self.promised - slack or self.much_is_missing:
            there = f"{self.there:.2f} of {self.promised:.2f} s are there"
            return [f"{there}, the file is cut or damaged or its header is wrong"]
        if self.there > self.promised + 4 * slack:
            return [f"the header says {self.promised:.2f} s, but {self.there:.2f} s are there"]
        return []


def verdict(taker: Taker, stopped: str, told: Told | None) -> str:
    """What is to be said of a stream; nothing when it is all good.

    Args:
        taker: What was taken of the stream.
        stopped: Why reading stopped before the file's end; empty when it did not.
        told: What the header promises; None when it does not count.

    Raises:
        BadClipError: "empty", "unreadable", "corrupt": too much is wrong with it, or nothing came.
    """
    kind = taker.kind
    remarks = taker.remarks()
    if stopped:
        remarks.append(f"reading stopped early: {stopped}")
    if told is not None:
        remarks += told.remarks
    text = f"{kind}: {', '.join(remarks)}"
    if not taker.given and not remarks:
        raise BadClipError("empty", f"{kind}: nothing lies in the span")
    if not taker.given and taker.untimed:
        raise BadClipError("unreadable", f"{text}; bare streams need a container such as MP4")
    if not taker.given or taker.is_spoilt() or (told is not None and told.much_is_missing):
        raise BadClipError("corrupt", text)
    return text if remarks else ""
