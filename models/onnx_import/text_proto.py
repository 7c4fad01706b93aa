"""Read protobuf's text format, in which Triton's config.pbtxt is written."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple, NoReturn, TypeVar

DEEPEST = 32  # levels of messages in messages
TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
    |(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<word>[-+]?[A-Za-z0-9_.][A-Za-z0-9_.+-]*)
    |(?P<mark>[{}<>\[\]:,;])""",
    re.VERBOSE,
)
ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{1,2}|[0-7]{1,3}|.)")
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
ENDS = {"{": "}", "<": ">"}
OCTAL, HEXADECIMAL = 8, 16

Kind = TypeVar("Kind", "Text", "Word", "Message")


class Text(str):
    """A value in quotes."""


class Word(str):
    """A value without quotes: a number, a truth value, or the name of an enumeration's value."""


class Field(NamedTuple):
    """One value of a field; a field with several values comes once for each."""

    name: str
    value: Text | Word | Message
    line: int


class Message:
    """Fields of a message, and typed access to them.

    Accessors raise a ValueError that names the file, the line and the field if a value is of
    another type, or if a field that holds one value is there twice.
    """

    def __init__(self, where: str, fields: Collection[Field] = ()) -> None:
        self.where = where
        self.fields = tuple(fields)

    def __contains__(self, name: str) -> bool:
        return any(field.name == name for field in self.fields)

    def check_known(self, known: Collection[str]) -> None:
        """Refuse fields of other names."""
        for field in self.fields:
            if field.name not in known:
                raise ValueError(
                    f"{self.where}, line {field.line}: unknown field {field.name!r}; known are "
                    f"{', '.join(sorted(known))}"
                )

    def text(self, name: str) -> str | None:
        """Return the text of a field, None if it is absent."""
        return next(iter(self._only(name, Text, "a text in quotes")), None)

    def word(self, name: str) -> str | None:
        """Return the name of an enumeration's value, None if it is absent."""
        return next(iter(self._only(name, Word, "a name without quotes")), None)

    def message(self, name: str) -> Message | None:
        """Return the message of a field, None if it is absent."""
        return next(iter(self._only(name, Message, "a message in braces")), None)

    def messages(self, name: str) -> tuple[Message, ...]:
        """Return all messages of a field."""
        return tuple(self._typed(name, Message, "a message in braces"))

    def number(self, name: str, default: int) -> int:
        """Return the whole number of a field."""
        found = self.numbers(name)
        self._only(name, Word, "a whole number")
        return found[0] if found else default

    def numbers(self, name: str) -> tuple[int, ...]:
        """Return all whole numbers of a field."""
        found = list[int]()
        for word in self._typed(name, Word, "a whole number"):
            try:
                found.append(int(word, 0))
            except ValueError as error:
                raise ValueError(
                    f"{self.where}: {name} is {word}; it should be a whole number"
                ) from error
        return tuple(found)

    def _only(self, name: str, kind: type[Kind], described: str) -> list[Kind]:
        found = list(self._typed(name, kind, described))
        if len(found) > 1:
            raise ValueError(f"{self.where}: {name} is given {len(found)} times; give it once")
        return found

    def _typed(self, name: str, kind: type[Kind], described: str) -> Iterator[Kind]:
        for field in self.fields:
            if field.name != name:
                continue
            if not isinstance(field.value, kind):
                raise ValueError(f"{self.where}, line {field.line}: {name} should be {described}")
            yield field.value


def parse(content: str, name: str) -> Message:
    """Parse a message in text format.

    Args:
        content: The text.
        name: Its file, for messages.

    Raises:
        ValueError: If it does not follow the format; the message names file and line.
    """
    return _Parser(content, name).message(None, 0)


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


class _Parser:
    def __init__(self, content: str, name: str) -> None:
        self.name = name
        self.tokens = list(self._split(content))
        self.place = 0

    def message(self, end: str | None, depth: int) -> Message:
        """Parse fields until `end`, None: the end of the text."""
        if depth > DEEPEST:
            self._fail(f"messages are nested more than {DEEPEST} deep")
        fields = list[Field]()
        while not self._take(end):
            key = self._next("the name of a field")
            if key.kind != "word" or not re.fullmatch("[A-Za-z_]\\w*", key.text):
                self._fail(f"expected the name of a field, found {key.text!r}", key)
            has_colon = self._take(":")
            values = self._values(key, has_colon, depth)
            fields += [Field(key.text, value, key.line) for value in values]
            if not self._take(","):
                self._take(";")
        return Message(self.name, fields)

    def _values(self, key: _Token, has_colon: bool, depth: int) -> list[Text | Word | Message]:
        if not self._take("["):
            return [self._value(key, has_colon, depth)]
        found = list[Text | Word | Message]()
        while not self._take("]"):
            found.append(self._value(key, has_colon, depth))
            if not self._take(",") and self._peek() != "]":
                self._fail(f"the list of {key.text} has neither ',' nor ']' after a value")
        return found

    def _value(self, key: _Token, has_colon: bool, depth: int) -> Text | Word | Message:
        token = self._next(f"a value of {key.text}")
        if token.text in ENDS and token.kind == "mark":
            return self.message(ENDS[token.text], depth + 1)
        if token.kind == "mark" or not has_colon:
            self._fail(f"expected {key.text}: VALUE, found {token.text!r}", token)
        if token.kind == "word":
            return Word(token.text)
        parts = [token.text]
        while self.place < len(self.tokens) and self.tokens[self.place].kind == "text":
            parts.append(self._next("a text").text)  # texts side by side are one
        return Text("".join(ESCAPE.sub(_unescape, part[1:-1]) for part in parts))

    def _split(self, content: str) -> Iterator[_Token]:
        place, line = 0, 1
        while place < len(content):
            found = TOKEN.match(content, place)
            if found is None:
                raise ValueError(
                    f"{self.name}, line {line}: {content[place : place + 20]!r} is no text format "
                    f"of protobuf"
                )
            kind, text = found.lastgroup or "", found.group()
            if kind != "space":
                yield _Token(kind, text, line)
            line += text.count("\n")
            place = found.end()

    def _peek(self) -> str | None:
        """Return the next mark; None if the next token is none or there is no further one."""
        if self.place == len(self.tokens) or self.tokens[self.place].kind != "mark":
            return None
        return self.tokens[self.place].text

    def _take(self, mark: str | None) -> bool:
        """Take the next token if it is that mark; None stands for the end of the text."""
        if mark is None:
            return self.place == len(self.tokens)
        found = self._peek() == mark
        self.place += found
        return found

    def _next(self, wanted: str) -> _Token:
        if self.place == len(self.tokens):
            self._fail(f"expected {wanted}, found the end of the file")
        self.place += 1
        return self.tokens[self.place - 1]

    def _fail(self, problem: str, token: _Token | None = None) -> NoReturn:
        last = self.tokens[min(self.place, len(self.tokens) - 1)] if self.tokens else None
        line = (token or last or _Token("", "", 1)).line
        raise ValueError(f"{self.name}, line {line}: {problem}")


def _unescape(found: re.Match[str]) -> str:
    code = found.group(1)
    if code[0] == "x" and len(code) > 1:
        return chr(int(code[1:], HEXADECIMAL))
    if code[0].isdigit() and code[0] < "8":
        return chr(int(code, OCTAL))
    return ESCAPES.get(code, code)
