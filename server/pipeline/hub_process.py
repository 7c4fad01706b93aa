"""Download from the hub in a process of its own.

The client of the hub leaves threads behind, and a server must have none when it forks its
processes. The answer is one JSON object on standard output.
"""

import json
import subprocess
import sys
from pathlib import Path

from server.pipeline.hub import Address, download_bundle, download_model


def fetch_model(address: Address) -> Path:
    """Call `download_model` in a new process."""
    return _fetch(address, None)


def fetch_bundle(address: Address, cache: Path) -> Path:
    """Call `download_bundle` in a new process."""
    return _fetch(address, cache)


def _fetch(address: Address, cache: Path | None) -> Path:
    asked = json.dumps([address.name, address.revision, None if cache is None else str(cache)])
    command = [sys.executable, "-m", "server.pipeline.hub_process", asked]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    try:
        answer = json.loads(ended.stdout)
    except ValueError as error:
        raise ValueError(
            f"downloading {address.name} ended with status {ended.returncode}, as the lines above "
            f"say"
        ) from error
    if "error" in answer:
        raise ValueError(answer["error"])
    return Path(answer["folder"])


def main() -> None:
    """Download what the first argument names, and print its folder."""
    name, revision, cache = json.loads(sys.argv[1])
    address = Address(name, revision)
    try:
        if cache is None:
            answer = {"folder": str(download_model(address))}
        else:
            answer = {"folder": str(download_bundle(address, Path(cache)))}
    except (ValueError, OSError) as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
