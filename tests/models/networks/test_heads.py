import pytest

from models.networks.heads import Conv, parse_heads


@pytest.mark.parametrize(
    ("text", "heads"),
    [
        ("32/2,64/1;8/1", ((Conv(32, 2), Conv(64, 1)), (Conv(8, 1),))),
        ("4/2", ((Conv(4, 2),),)),
        (";4/2", ((), (Conv(4, 2),))),
        ("", ((),)),
    ],
)
def test_heads_are_read(text: str, heads: tuple[tuple[Conv, ...], ...]) -> None:
    assert parse_heads(text) == heads


@pytest.mark.parametrize("text", ["32", "32/2/1", "a/b", "32/2;x", "32/", "/2", "32/2.5", "32 2"])
def test_heads_of_another_form_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"do not have the form '32/2,64/2;64/2'"):
        parse_heads(text)


@pytest.mark.parametrize("text", ["0/1", "32/0", "-4/1", "4/-1"])
def test_heads_without_channels_or_stride_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="heads"):
        parse_heads(text)
