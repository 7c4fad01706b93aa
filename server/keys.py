"""API keys: files of their hashes, read again when they change."""

import hashlib
import hmac
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)

LINE = re.compile(r"sha256:([0-9a-fA-F]{64})(\s.*)?")
SCHEME = b"bearer"
MAKE_ONE = "docs/operations.md has the command that makes one"
_State = tuple[int, int, int]  # of a file: what changes when it is written or replaced


class KeySet:
    """The SHA-256 of each key that opens something.

    The keys are random and long, so one round of a fast hash hides them well enough, and checking
    one costs a microsecond.

    Args:
        digests: 32 bytes each.
    """

    def __init__(self, digests: Iterable[bytes]) -> None:
        self.digests = frozenset(digests)
        self._known: set[bytes] = set()  # of the keys that were shown already

    def __contains__(self, digest: bytes) -> bool:
        """Whether one of the keys has this digest, compared in constant time."""
        if digest in self._known:
            return True
        found = [hmac.compare_digest(digest, each) for each in self.digests]
        if any(found):
            self._known.add(digest)
            return True
        return False


def digest_of(authorization: bytes) -> bytes | None:
    """The SHA-256 of the key in the header `Authorization: Bearer KEY`; None if it has none."""
    scheme, _, key = authorization.strip().partition(b" ")
    key = key.strip()
    if scheme.lower() != SCHEME or not key or b" " in key:
        return None
    return hashlib.sha256(key).digest()


def read_keys(path: Path) -> KeySet:
    """Read a file with one line `sha256:HEX NAME` for each key; `#` begins a comment.

    Raises:
        ValueError: If it cannot be read, holds something else, or holds no key.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ValueError(f"the keys in {path} cannot be read: {reason}") from error
    digests = []
    for number, line in enumerate(lines, 1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        match = LINE.fullmatch(entry)
        if match is None:  # not shown: somebody may have written the key itself
            raise ValueError(
                f"line {number} of {path} is not sha256: and 64 hexadecimal digits; {MAKE_ONE}"
            )
        digests.append(bytes.fromhex(match[1]))
    if not digests:
        raise ValueError(f"{path} holds no key, so nobody could ask; {MAKE_ONE}")
    return KeySet(digests)


class KeyFile:
    """A file of keys that may change while the server runs.

    A change that cannot be read is logged and changes nothing: half a file must not lock all out.

    Args:
        path: The file.

    Attributes:
        keys: Those that it holds.

    Raises:
        ValueError: As `read_keys`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state = _state_of(path)  # before it is read: a change meanwhile is seen later
        self.keys = read_keys(path)

    def refresh(self) -> bool:
        """Read the file again if it has changed; return whether the keys are others now."""
        state = _state_of(self.path)
        if state == self._state:
            return False
        self._state = state
        try:
            keys = read_keys(self.path)
        except ValueError as error:
            log.error("%s; the keys of before stay in force", error)
            return False
        before, self.keys = self.keys.digests, keys
        added, removed = len(keys.digests - before), len(before - keys.digests)
        log.info("%s: %d keys added, %d removed", self.path, added, removed)
        return bool(added or removed)


def _state_of(path: Path) -> _State | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
