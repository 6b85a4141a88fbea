"""Secrets of a job: sealed with the cluster's token on the way, masked in what the job writes.

Ray keeps the environment of a job in its control store as it was given, shows it to whoever lists
jobs, and writes it into logs of the nodes (2.60.0). So values travel sealed; the nodes, which have
the token, unseal them into the environment of the driver and of each worker. Who has the token can
unseal them as well, and could run a job that reads them.
Held by test_a_driver_and_a_worker_have_the_secret_and_the_log_has_not.
"""

import base64
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus

from pipelines.experiment import InputError
from pipelines.jobs.submission import SEALED
from pipelines.jobs.tokens import Token, find_token

SALT_BYTES = 16
SHORTEST = 4  # a shorter value would be found in half of all lines
SHORTEST_LINE = 8  # of a secret of several lines, such as a key
STARS = b"***"


def secrets_of(names: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The values of secrets, from the submitter's environment. Raises InputError."""
    found = {}
    for name in names:
        if not environment.get(name):
            raise InputError(f"--secret {name}: there is no {name} in your environment")
        if len(environment[name]) < SHORTEST:
            raise InputError(
                f"--secret {name}: its value has less than {SHORTEST} characters, too few to be "
                f"found in what the job writes"
            )
        found[name] = environment[name]
    return found


def check_unseen(values: Mapping[str, str], texts: Iterable[str]) -> None:
    """Raise InputError where the value of a secret stands in a text that anybody may see."""
    told = [*texts]
    for name, value in values.items():
        if len(value) >= SHORTEST and any(value in text for text in told):
            raise InputError(
                f"--secret {name}: its value stands in the command or in a variable as well, which "
                f"anybody may see; let the program take {name} from its environment"
            )


def seal(values: Mapping[str, str], token: Token) -> str:
    """Values that only who has the token can read, as text.

    Raises:
        InputError: There is no token.
    """
    if not token.value:
        raise InputError(
            f"--secret: secrets are sealed with the cluster's token, and none was found: "
            f"{token.told}"
        )
    from cryptography.fernet import Fernet

    salt = os.urandom(SALT_BYTES)
    sealed = Fernet(_key(token, salt)).encrypt(json.dumps(dict(values)).encode())
    return f"{base64.urlsafe_b64encode(salt).decode()}.{sealed.decode()}"


def unseal(sealed: str, token: Token) -> dict[str, str]:
    """The values again.

    Raises:
        InputError: The token is not the one that they were sealed with.
    """
    from cryptography.fernet import Fernet, InvalidToken

    salt, _, content = sealed.partition(".")
    try:
        key = _key(token, base64.urlsafe_b64decode(salt))
        plain: dict[str, str] = json.loads(Fernet(key).decrypt(content.encode()))
    except (InvalidToken, ValueError):
        raise InputError(
            f"the job's secrets are not sealed with this node's token ({token.told}): submit the "
            f"job with the token that the nodes have"
        ) from None
    return plain


def unseal_here() -> None:
    """Put a job's secrets into this process's environment; Ray calls it in each worker."""
    if sealed := os.environ.get(SEALED):
        os.environ.update(unseal(sealed, find_token(os.environ, Path.home())))


def _key(token: Token, salt: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    derived = HKDF(SHA256(), 32, salt, b"fuseline: secrets of a job").derive(token.value.encode())
    return base64.urlsafe_b64encode(derived)


class Mask:
    """Takes secrets out of what is written; holds an unfinished line back until it is finished.

    Found are a value as it is, as JSON, Python and addresses write it, and of one of several lines
    each line of 8 characters or more. Not found is what a program makes of it otherwise, as by
    base64.
    """

    def __init__(self, values: Iterable[str]) -> None:
        long = {each.encode() for value in values for each in _forms(value)}
        self._values = sorted(long, key=len, reverse=True)
        self._rest = b""

    def __call__(self, content: bytes) -> bytes:
        """What may be written of it now."""
        if not self._values:
            return content
        whole, rest = _whole_lines(self._rest + content)
        self._rest = rest
        return self._masked(whole)

    def rest(self) -> bytes:
        """What was held back."""
        rest, self._rest = self._rest, b""
        return self._masked(rest)

    def _masked(self, content: bytes) -> bytes:
        for value in self._values:
            content = content.replace(value, STARS)
        return content


def _forms(value: str) -> Iterator[str]:
    lines = value.splitlines()
    for part in [value, *(line for line in lines if len(lines) > 1 and len(line) >= SHORTEST_LINE)]:
        if len(part) >= SHORTEST:
            yield part
            yield json.dumps(part)[1:-1]
            yield json.dumps(part, ensure_ascii=False)[1:-1]
            yield from _as_python(part)
            yield quote_plus(part)
            yield quote(part, safe="")
            yield quote(part)


def _as_python(text: str) -> Iterator[str]:
    """As it stands within the quotes of what Python shows of texts and bytes that hold it."""
    for shown in (repr, ascii):
        yield shown(text)[1:-1]
        # What stands around it may decide on the other quotes, within which its own are escaped.
        yield shown(f"{text}'\"")[1:-1].removesuffix("\\'\"")
    yield repr(text.encode())[2:-1]


def _whole_lines(content: bytes) -> tuple[bytes, bytes]:
    end = max(content.rfind(b"\n"), content.rfind(b"\r")) + 1
    return content[:end], content[end:]
