"""The key that commands send to a server: from a file or the environment, never from a flag."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "EENET_KEY"
KEY = re.compile(r"[!-~]+")
ADVICE = {
    401: f"give a key that the server knows with --key-file FILE or in {VARIABLE}",
    403: "give a key of the other group with --key-file FILE, or list it in --api-keys and in "
    "--admin-keys of the server",
}


def add_key_file(parser: argparse.ArgumentParser, use: str) -> None:
    """Add --key-file."""
    parser.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help=f"file of the key to send to the server, {use} (default: the environment's "
        f"{VARIABLE}, if it is set)",
    )


def read_key(path: Path | None, environ: Mapping[str, str]) -> str | None:
    """Return the key to send, without the blanks around it; None: none.

    Args:
        path: File that holds it; None: the environment may.
        environ: The environment.

    Raises:
        ValueError: If the file cannot be read, or there is something else than one key.
    """
    if path is None:
        source, text = VARIABLE, environ.get(VARIABLE)
        if text is None:
            return None
    else:
        source = f"--key-file {path}"
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{source} cannot be read: {error}") from error
    key = text.strip()
    if not KEY.fullmatch(key):  # the key itself is in no message
        raise ValueError(f"{source} does not hold one key without blanks; put the key alone there")
    return key


def key_headers(key: str | None) -> tuple[tuple[str, str], ...]:
    """Return the header fields that carry a key."""
    return () if key is None else (("Authorization", f"Bearer {key}"),)


def advice(status: int) -> str:
    """Return what to do about a refusal, as the end of a sentence; empty for other statuses."""
    return f"; {ADVICE[status]}" if status in ADVICE else ""
