from __future__ import annotations

import pytest

from models.onnx_import.text_proto import Message, parse

WRITTEN = r"""
# a comment
name: "a#b" 'c\n\x41\101\'' , platform : 'x';
max_batch_size: 0x10
dims: [ 3, -1, 224 ]
dims: 5
input [
  { name: "one" },
  { name: "two" }
]
input < name: "three" >
policy: { all {} }
flag: true
"""


def read(content: str) -> Message:
    return parse(content, "config.pbtxt")


def test_every_form_of_a_value() -> None:
    found = read(WRITTEN)
    assert found.text("name") == "a#bc\nAA'"
    assert found.text("platform") == "x" and found.text("other") is None
    assert found.number("max_batch_size", 0) == 16 and found.number("other", 7) == 7
    assert found.numbers("dims") == (3, -1, 224, 5)
    assert [each.text("name") for each in found.messages("input")] == ["one", "two", "three"]
    policy = found.message("policy")
    assert policy is not None and "all" in policy and "latest" not in policy
    assert found.word("flag") == "true"
    assert not read("").fields and not read("# nothing").fields


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("\nname: @", "line 2: '@' is no text format"),
        ("name: 'a", 'line 1: "\'a" is no text format'),
        ("name 'a'", "line 1: expected name: VALUE, found \"'a'\""),
        ("name:", "expected a value of name, found the end of the file"),
        ("input {\n name: 'a'", "line 2: expected the name of a field, found the end"),
        ("input { name: 'a' >", "expected the name of a field, found '>'"),
        ("'a': 1", "expected the name of a field"),
        ("3: 1", "expected the name of a field, found '3'"),
        ("dims: [ 1 2 ]", "the list of dims has neither ',' nor ']'"),
        ("dims: ]", "expected dims: VALUE, found ']'"),
        ("a {" * 40, "messages are nested more than 32 deep"),
    ],
)
def test_what_is_no_text_format(content: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"config\.pbtxt, line") as error:
        read(content)
    assert said in str(error.value)


def test_values_of_another_type() -> None:
    found = read("name: one\nname: two\nsize: 1.5\ninput: 'text'\nflag: true\nflag: false")
    for wrong, said in (
        (lambda: found.text("name"), "line 1: name should be a text in quotes"),
        (lambda: found.number("size", 0), "size is 1.5; it should be a whole number"),
        (lambda: found.messages("input"), "line 4: input should be a message in braces"),
        (lambda: found.word("flag"), "flag is given 2 times; give it once"),
        (lambda: found.check_known(["name", "size"]), "line 4: unknown field 'input'"),
    ):
        with pytest.raises(ValueError, match=r"config\.pbtxt") as error:
            wrong()
        assert said in str(error.value)
