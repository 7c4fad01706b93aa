import errno

import pytest

from server.shortage import shortage_of


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "run out of memory; raise `ulimit -v`"),
        (RuntimeError("can't start new thread"), "no more threads; raise `ulimit -u`"),
        (OSError(errno.EMFILE, "Too many open files"), "no more files; raise `ulimit -n`"),
        (OSError(errno.ENFILE, "Too many open files in system"), "no more files"),
        (RuntimeError("something else"), None),
        (OSError(errno.ENOENT, "No such file"), None),
        (ValueError("bad"), None),
    ],
)
def test_what_there_is_too_little_of_is_said(error: Exception, sentence: str | None) -> None:
    told = shortage_of(error)
    assert told is None if sentence is None else sentence in (told or "")
