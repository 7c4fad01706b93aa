"""Keys of results that can be kept: hashes of all that a result depends on."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGE = 2 << 30  # bytes of a folder; above it, sizes and times of change replace the content
CHUNK = 1 << 20


def content_key(**parts: Any) -> str:
    """Return a hash of plain values, in hexadecimal.

    Args:
        **parts: Plain JSON values by name.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def hash_of(path: Path) -> str:
    """Return a hash of the names and contents of a file or of all files of a folder."""
    files = sorted(_files(path))
    total = sum(file.stat().st_size for file in files)
    found = hashlib.sha256()
    for file in files:
        name = "" if file == path else file.relative_to(path).as_posix()
        found.update(f"{name}\0{file.stat().st_size}\0".encode())
        if total > LARGE:
            found.update(str(file.stat().st_mtime_ns).encode())
            continue
        with file.open("rb") as content:
            while chunk := content.read(CHUNK):
                found.update(chunk)
    return found.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, _, names in os.walk(path):
        for name in names:
            if (file := Path(folder) / name).is_file():
                yield file
