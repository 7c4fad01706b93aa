"""What this process has run out of, as a sentence."""

import errno

MORE_MEMORY = "raise `ulimit -v`, or the container's limit"
NO_THREAD = "can't start new thread"  # Python's words


def shortage_of(error: BaseException) -> str | None:
    """Return what an error says that there is too little of; None if it says something else."""
    if isinstance(error, MemoryError):
        return f"this process has run out of memory; {MORE_MEMORY}"
    if isinstance(error, RuntimeError) and str(error) == NO_THREAD:
        return f"this process can start no more threads; raise `ulimit -u`, or {MORE_MEMORY}"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "this process can open no more files; raise `ulimit -n`"
    return None
