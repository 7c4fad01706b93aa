import json

import pytest

from models.run import Conv, TrainConfig, heads_text, parse_heads


def config(**changes: object) -> TrainConfig:
    settings = {"depth": 8, "exits": (1,), "heads": ((Conv(4, 2),),), "dataset": "d", **changes}
    return TrainConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "heads"),
    [
        ("32/2,64/1;8/1", ((Conv(32, 2), Conv(64, 1)), (Conv(8, 1),))),
        ("4/2", ((Conv(4, 2),),)),
        (";4/2", ((), (Conv(4, 2),))),
        ("", ((),)),
    ],
)
def test_heads_and_their_text_are_inverses(text: str, heads: tuple[tuple[Conv, ...], ...]) -> None:
    assert parse_heads(text) == heads
    assert heads_text(heads) == text


@pytest.mark.parametrize("text", ["32", "32/2/1", "a/b", "32/2;x", "32/", "/2", "32/2.5", "32 2"])
def test_heads_of_another_form_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"not of the form '32/2,64/2;64/2'"):
        parse_heads(text)


@pytest.mark.parametrize("text", ["0/1", "32/0", "-4/1", "4/-1"])
def test_heads_without_channels_or_stride_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="heads"):
        parse_heads(text)


def test_a_config_survives_its_json() -> None:
    before = config(exits=(1, 2), heads=((), (Conv(4, 2), Conv(6, 1))), init="plain.safetensors")
    assert TrainConfig.from_json(json.loads(json.dumps(before.to_json()))) == before


@pytest.mark.parametrize("name", ["epochs", "batch_size", "peak_lr", "distill_temperature"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_what_must_be_positive_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be above 0"):
        config(**{name: value})
