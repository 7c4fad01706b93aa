import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.texts import FILLERS, is_blank

NOTHING = {
    "nothing": "",
    "blanks of all kinds": " \t\n\v\f\r\x1c\x85\xa0\u1680\u2000\u2028\u2029\u202f\u205f\u3000",
    "zero width": "\u200b\u200c\u200d\u2060\ufeff\xad\u180e",
    "controls": "\0\x01\x1f\x7f",
    "directions": "\u202a\u202e\u2066\u2069",
    "marks alone": "\u0301\u0308\u20dd\ufe0f",
    "fillers": FILLERS,
    "tags": "\U000e0041\U000e007f",
}
SOMETHING = {
    "word": "Oil",
    "behind nothing": "\ufeff\u200b Oil",
    "digit": "7",
    "signs": "?!",
    "emoji": "\U0001f600",
    "emoji that this Python does not know": "\U0001fae8",
    "accent on a letter": "e\u0301",
    "Thai": "\u0e18\u0e19\u0e32\u0e04\u0e32\u0e23",
    "Devanagari": "\u0939\u093f\u0928\u094d\u0926\u0940",
    "half a character": "\ud83d",
    "own use": "\ue000",
}


@pytest.mark.parametrize("text", NOTHING.values(), ids=NOTHING)
def test_what_shows_nothing_is_blank(text: str) -> None:
    assert is_blank(text) and is_blank(text * 3)


@pytest.mark.parametrize("text", SOMETHING.values(), ids=SOMETHING)
def test_anything_else_is_not(text: str) -> None:
    assert not is_blank(text)


@given(st.text(st.sampled_from("".join(NOTHING.values()))), st.text())
def test_what_is_blank_adds_nothing(blank: str, text: str) -> None:
    assert is_blank(blank)
    assert is_blank(blank + text) == is_blank(text)
