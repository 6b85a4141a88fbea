"""Secrets of a job: sealed on the way, masked in what it writes; and the token that seals them."""

import pytest

from pipelines.experiment import InputError
from pipelines.jobs import entrypoint, sealing
from pipelines.jobs.server import JobServer
from pipelines.jobs.tokens import Token, find_token

TOKEN = Token("a" * 64, "a test")


def test_secrets_come_out_as_they_went_in_for_who_has_the_token():
    sealed = sealing.seal({"A": "värde"}, TOKEN)
    assert "värde" not in sealed
    assert sealing.unseal(sealed, TOKEN) == {"A": "värde"}
    assert sealing.seal({"A": "värde"}, TOKEN) != sealed
    with pytest.raises(InputError, match="not sealed with this node's token"):
        sealing.unseal(sealed, Token("b" * 64, "another"))
    with pytest.raises(InputError, match="none was found: nowhere"):
        sealing.seal({"A": "x"}, Token("", "nowhere"))
    with pytest.raises(InputError, match="there is no A in your environment"):
        sealing.secrets_of(["A"], {"B": "x"})
    with pytest.raises(InputError, match="less than 4 characters"):
        sealing.secrets_of(["A"], {"A": "abc"})


def test_a_masked_secret_is_found_across_pieces_and_the_longer_one_first():
    mask = sealing.Mask(["pass", "password", "abc"])
    written = b"".join(mask(piece) for piece in (b"my pas", b"sword\nmy p", b"ass\rabc"))
    assert written + mask.rest() == b"my ***\nmy ***\rabc"  # three letters are in every line


@pytest.mark.parametrize(
    ("secret", "written"),
    [
        ("-----BEGIN-----\nMIIEvQIBADANBg\n-----END KEY-----", "x MIIEvQIBADANBg y"),
        ('pa"ss\\wörd', '{"a": "pa\\"ss\\\\w\\u00f6rd"}'),
        ("pa/ss word@1", "http://me:pa%2Fss%20word%401@host"),
        ("pa/ss word+1", "?key=pa%2Fss+word%2B1"),
        ("pa'ss\"word", "ValueError('pa\\'ss\"word')"),
        ("pa'ssword", repr('no "pa\'ssword"')),
        ("pa\tsswörd", ascii("pa\tsswörd")),
        ("pa\tsswörd", repr("pa\tsswörd".encode())),
    ],
)
def test_a_secret_is_found_by_line_and_as_json_and_addresses_write_it(secret, written):
    mask = sealing.Mask([secret])
    said = (mask(written.encode()) + mask.rest()).decode()
    assert "***" in said
    assert not [part for part in ("MIIE", "ss", "rd") if part in said]


def test_a_driver_and_a_worker_have_the_secret_and_the_log_has_not(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(entrypoint.signal, "signal", lambda number, handler: None)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN.value)
    monkeypatch.setenv("FUSELINE_SEALED", sealing.seal({"HIDDEN": "something"}, TOKEN))
    monkeypatch.setenv("HIDDEN", "")
    program = "import os; print(len(os.environ['HIDDEN']), os.environ['HIDDEN'])"
    assert entrypoint.main("x-1", str(tmp_path), "-", ["python", "-c", program]) == 0
    assert capfd.readouterr().out == "9 ***\n"
    sealing.unseal_here()
    assert entrypoint.os.environ["HIDDEN"] == "something"


def test_the_token_is_looked_for_where_ray_does(tmp_path):
    file = tmp_path / ".ray" / "auth_token"
    assert find_token({"RAY_AUTH_TOKEN": "x"}, tmp_path) == Token("x", "RAY_AUTH_TOKEN")
    told = find_token({}, tmp_path)
    assert told.value == ""
    for place in ("RAY_AUTH_TOKEN (not set)", "RAY_AUTH_TOKEN_PATH (not set)", str(file)):
        assert place in told.told
    file.parent.mkdir()
    file.write_text("y\n")
    assert find_token({}, tmp_path) == Token("y", str(file))
    assert find_token({"RAY_AUTH_TOKEN_PATH": str(file)}, tmp_path / "no").value == "y"
    assert find_token({"RAY_AUTH_TOKEN": "x", "RAY_AUTH_MODE": "disabled"}, tmp_path).value == ""


@pytest.mark.parametrize("wrong", ["hush\nhush", "hush hush", "hushö"])
def test_what_is_no_token_is_told_by_its_place_and_not_shown(tmp_path, wrong):
    file = tmp_path / "token"
    file.write_text(f"{wrong}\n")
    for environment, place in (
        ({"RAY_AUTH_TOKEN": wrong}, "RAY_AUTH_TOKEN: no token"),
        ({"RAY_AUTH_TOKEN_PATH": str(file)}, f"RAY_AUTH_TOKEN_PATH ({file}): no token"),
    ):
        with pytest.raises(InputError) as error:
            find_token(environment, tmp_path)
        assert str(error.value).startswith(place)
        assert "hush" not in str(error.value)


@pytest.mark.parametrize("wrong", ["http://head:82x", "http://[::1:8265", "http://a b:1"])
def test_an_address_that_is_none_is_told_in_one_line(wrong):
    with pytest.raises(InputError, match=r"^--address: http.* is no "):
        JobServer(wrong, "--address", TOKEN).ray_version()
