"""Suggestions for names that were mistyped: options, settings, fields, classes."""

import difflib
import re
from collections.abc import Collection, Iterable

LONGEST_NAME = 64  # a client chooses the name, and comparing takes time with its length
OTHER_INPUTS = frozenset({"input", "inputs", "instance", "instances"})  # of other servers
INPUTS_HINT = "; the input is text, texts, image or images (in base64)"
LINK = re.compile(r"(^|_)ur[il]s?$", re.IGNORECASE)


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


def field_hint(name: str, known: Collection[str]) -> str:
    """Suggest a field instead of an unknown one.

    Args:
        name: The unknown name.
        known: As `did_you_mean`; with the inputs of a prediction, they are named to those who call
            them as other servers do.
    """
    if "texts" not in known:
        return did_you_mean(name, known)
    if LINK.search(name[:LONGEST_NAME]):
        return "; URLs are not fetched, send the file itself in base64 as image"
    if name.lower() in OTHER_INPUTS:
        return INPUTS_HINT
    return did_you_mean(name, known) or INPUTS_HINT


def _word(name: str) -> str:
    """The part that tells names apart: all options begin with the same dashes."""
    return name.lower().removeprefix("--")
