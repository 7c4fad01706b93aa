"""The convolutions of image exit heads, and their notation on the command line."""

from typing import NamedTuple


class Conv(NamedTuple):
    """One 3x3 convolution of an exit head: its output channels and its stride."""

    channels: int
    stride: int


def parse_heads(text: str) -> tuple[tuple[Conv, ...], ...]:
    """Read heads written as `CHANNELS/STRIDE,...;...`, exits separated by `;`.

    Raises:
        ValueError: If the text has another form.
    """
    try:
        heads = tuple(
            tuple(Conv(*map(int, conv.split("/"))) for conv in head.split(",") if conv)
            for head in text.split(";")
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"heads {text!r} do not have the form '32/2,64/2;64/2' (channels/stride)"
        ) from error
    if any(min(conv) < 1 for head in heads for conv in head):
        raise ValueError(f"heads {text!r} have channels or a stride below 1")
    return heads
