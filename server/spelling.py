"""Suggestions for names that were mistyped: options, settings, fields, classes."""

import difflib
from collections.abc import Iterable

LONGEST_NAME = 64  # a client chooses the name, and comparing takes time with its length


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest the known name closest to an unknown one.

    Args:
        name: The unknown name.
        known: Every name that is allowed.

    Returns:
        The end of an error message, "; did you mean 'budget_ms'?", or "" if no name is close.
    """
    if len(name) > LONGEST_NAME:
        return ""
    by_word = {_word(each): each for each in known}
    close = difflib.get_close_matches(_word(name), by_word, n=1)
    return f"; did you mean {by_word[close[0]]!r}?" if close else ""


def _word(name: str) -> str:
    """The part that tells names apart: all options begin with the same dashes."""
    return name.lower().removeprefix("--")
