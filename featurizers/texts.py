"""Text files that others wrote: in which characters, and what is wrong in which line."""

import codecs
from dataclasses import dataclass
from pathlib import Path

from featurizers.clip import BadClipError
from featurizers.store import read_input

MOST_BYTES = 64 << 20

FEWEST = 3
"""With fewer bytes beyond ASCII than this nothing can be told of their character set."""

_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ASCII = bytes(range(128))
_WESTERN = "cp1252"
_USUAL = [
    *(f"cp125{digit}" for digit in range(9)),
    *("koi8_r", "koi8_u", "cp932", "euc_jp", "gb18030", "big5", "cp949"),
]


@dataclass(frozen=True, slots=True)
class Text:
    r"""A file's text, with \n between its lines.

    Attributes:
        name: The file's name, for messages.
    """

    name: str
    body: str

    def bad(self, message: str, line: int | None = None) -> BadClipError:
        """The error "bad_transcript" that names the file and, where known, the line."""
        where = self.name if line is None else f"{self.name}: line {line}"
        return BadClipError("bad_transcript", f"{where}: {message}")

    def line_at(self, offset: int) -> int:
        """The number of the line that a place in the text lies in; the first is 1."""
        return self.body.count("\n", 0, offset) + 1

    def lines(self) -> list[tuple[int, str]]:
        """The lines with their numbers."""
        return list(enumerate(self.body.split("\n"), start=1))


def read_text(path: Path) -> Text:
    """A text file of 64 MiB at most.

    A byte order mark decides; then UTF-8, wherever the bytes are; then what charset-normalizer
    finds most like a language, of the code pages that are in use, Windows' Western one among equals
    and where a text is too short to tell.

    Raises:
        BadClipError: "bad_transcript", naming the file.
        StorageError: It cannot be read now.
    """
    try:
        content = read_input(path, lambda: _content(path))
    except OSError as error:
        raise BadClipError("bad_transcript", f"{path}: {error.strerror}") from None
    encoding = _encoding(content)
    try:
        body = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise BadClipError(
            "bad_transcript", f"{path.name}: not {encoding} at byte {error.start}; save it as UTF-8"
        ) from None
    text = Text(path.name, body.replace("\r\n", "\n").replace("\r", "\n"))
    if "\0" in body:
        raise text.bad(
            "holds NUL characters, so it is no text", text.line_at(text.body.index("\0"))
        )
    return text


def _content(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise BadClipError(
            "bad_transcript",
            f"{path.name}: {size / (1 << 20):.0f} MiB; at most {MOST_BYTES >> 20} are taken",
        )
    return path.read_bytes()


def _encoding(content: bytes) -> str:
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return encoding
    if b"\0" in content:  # letters of UTF-16 that Latin scripts use have one zero byte each
        low_first = content[1::2].count(0) > content[0::2].count(0)
        return "utf-16-le" if low_first else "utf-16-be"
    try:
        content.decode()
    except UnicodeDecodeError:
        return _likeliest(content)
    return "utf-8"


def _likeliest(content: bytes) -> str:
    from charset_normalizer import from_bytes

    letters = len(content.translate(None, delete=_ASCII))
    found = list(from_bytes(content, cp_isolation=_USUAL)) if letters >= FEWEST else []
    if not found:
        return _WESTERN
    best = max(
        found,
        key=lambda match: (round(match.coherence - match.chaos, 2), match.encoding == _WESTERN),
    )
    return best.encoding
