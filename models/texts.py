"""Texts in which nothing can be read."""

import unicodedata

# Control and format characters, separators, and marks that combine with the character before them.
BLANK = frozenset(("Cc", "Cf", "Zs", "Zl", "Zp", "Mn", "Me"))
FILLERS = "\u115f\u1160\u2800\u3164\uffa0"  # letters and a symbol that show nothing


def is_blank(text: str) -> bool:
    """Whether a text is empty or shows nothing: blanks, zero-width characters, marks alone.

    Tokenisers that read bytes make tokens of these too, and a network would answer them.
    """
    begins_visibly = "!" <= text[:1] <= "~"  # most texts, in no time
    return not begins_visibly and all(
        unicodedata.category(character) in BLANK or character in FILLERS for character in text
    )
