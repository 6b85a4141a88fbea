"""The secret that a cluster asks for, from where Ray looks for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.experiment import InputError


@dataclass(frozen=True, slots=True)
class Token:
    """The secret, and where it was found or looked for.

    Attributes:
        value: Empty where there is none.
        told: For messages; never the secret.
    """

    value: str
    told: str


def find_token(environment: Mapping[str, str], home: Path) -> Token:
    """The token of this machine: the first place that has one, in Ray's order (2.60.0).

    Held by test_the_token_is_looked_for_where_ray_does.

    Raises:
        InputError: What is there is no token, as where a file holds two lines.
    """
    if environment.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return Token("", "RAY_AUTH_MODE is disabled")
    if environment.get("RAY_AUTH_TOKEN", "").strip():
        return _token(environment["RAY_AUTH_TOKEN"].strip(), "RAY_AUTH_TOKEN")
    looked = ["RAY_AUTH_TOKEN (not set)"]
    if path := environment.get("RAY_AUTH_TOKEN_PATH", ""):
        file, told = Path(path).expanduser(), f"RAY_AUTH_TOKEN_PATH ({path}"
        if value := _read(file):
            return _token(value, f"{told})")
        looked.append(f"{told}: no file with a token)")
    else:
        looked.append("RAY_AUTH_TOKEN_PATH (not set)")
    file = home / ".ray" / "auth_token"
    if value := _read(file):
        return _token(value, str(file))
    looked.append(f"{file} (no file with a token)")
    return Token("", ", ".join(looked))


def _token(value: str, told: str) -> Token:
    # It becomes a header's value, whose errors would show it.
    if not (value.isascii() and value.isprintable() and " " not in value):
        raise InputError(
            f"{told}: no token: wanted one word of ASCII characters, without spaces and on one "
            f"line; `ray get-auth-token --generate` writes one"
        )
    return Token(value, told)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
