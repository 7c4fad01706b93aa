"""TLS: uvicorn's options, and the check that certificate and key fit."""

import ssl
from typing import Any

from server.settings import Settings


def tls_options(settings: Settings) -> dict[str, Any]:
    """The options of uvicorn's configuration; none without a certificate."""
    if settings.ssl_certfile is None:
        return {}
    password = settings.ssl_keyfile_password
    return {
        "ssl_certfile": settings.ssl_certfile,
        "ssl_keyfile": settings.ssl_keyfile,
        "ssl_keyfile_password": None if password is None else password.get_secret_value(),
    }


def check_tls(settings: Settings) -> None:
    """Check that the certificate can be used, before models load.

    Raises:
        ValueError: If it cannot; the message names the files and never the password.
    """
    if settings.ssl_certfile is None:
        return
    password = settings.ssl_keyfile_password
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(
            settings.ssl_certfile,
            settings.ssl_keyfile,
            # Asked for only if the key is encrypted; without it OpenSSL would ask the terminal.
            lambda: "" if password is None else password.get_secret_value(),
        )
    except OSError as error:  # ssl.SSLError among them
        key = settings.ssl_keyfile or settings.ssl_certfile
        misfit = "they do not fit, or the password is wrong"
        reason = misfit if isinstance(error, ssl.SSLError) else error.strerror
        raise ValueError(
            f"the certificate {settings.ssl_certfile} with the key {key} cannot be used: "
            f"{reason}; see --ssl-certfile, --ssl-keyfile and --ssl-keyfile-password"
        ) from error
