"""What a check found: one line for people, plain data for machines."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was looked at, how it is, what was found, and what to do about it."""

    area: str
    what: str
    state: State
    found: str
    do: str = ""

    def __str__(self) -> str:
        """The line."""
        told = f"{self.state:8} {self.area:9} {self.what}: {self.found}"
        return f"{told}; {self.do}" if self.do else told


def finding(area: str, what: str, state: State, found: str, do: str = "") -> Finding:
    """A finding, in the order in which its line is read."""
    return Finding(area=area, what=what, state=state, found=found, do=do)
