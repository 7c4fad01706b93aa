from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from server.settings import Settings
from server.tls import check_tls, tls_options


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate, and its private key under the password `sesame`."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    for name in ("mine", "other"):
        subprocess.run(
            [openssl, "req", "-x509", "-newkey", "rsa:2048", "-passout", "pass:sesame",
             "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt", "-subj", "/CN=x"],
            check=True, capture_output=True,
        )  # fmt: skip
    return folder


def settings_of(folder: Path, crt: str, key: str | None, password: str | None) -> Settings:
    given = {"ssl_certfile": folder / crt, "ssl_keyfile": key and folder / key}
    return Settings(**given, ssl_keyfile_password=password)  # type: ignore[arg-type]


def test_a_certificate_that_fits_its_key_is_taken(pair: Path) -> None:
    settings = settings_of(pair, "mine.crt", "mine.key", "sesame")
    check_tls(settings)
    assert tls_options(settings) == {
        "ssl_certfile": pair / "mine.crt",
        "ssl_keyfile": pair / "mine.key",
        "ssl_keyfile_password": "sesame",
    }


def test_without_a_certificate_there_is_nothing_to_check() -> None:
    check_tls(Settings())
    assert tls_options(Settings()) == {}


@pytest.mark.parametrize(
    ("crt", "key", "password", "reason"),
    [
        ("mine.crt", "mine.key", "simsim", "do not fit, or the password is wrong"),
        ("mine.crt", "mine.key", None, "do not fit, or the password is wrong"),
        ("mine.crt", "other.key", "sesame", "do not fit"),
        ("mine.crt", None, None, "do not fit"),
        ("mine.key", "mine.key", "sesame", "do not fit"),
        ("none.crt", "mine.key", "sesame", "No such file"),
        ("mine.crt", "none.key", "sesame", "No such file"),
    ],
)
def test_what_cannot_be_used_is_named_without_the_password(
    pair: Path, crt: str, key: str | None, password: str | None, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason) as told:
        check_tls(settings_of(pair, crt, key, password))
    assert str(pair / crt) in str(told.value) and "--ssl-keyfile-password" in str(told.value)
    assert "sesame" not in str(told.value) and "simsim" not in str(told.value)
