from pathlib import Path

import pytest

from server.pipeline.hub import Address, check_safetensors, is_name, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://org/name", Address("org/name")),
        ("hf://org/my-bert_2.0@v1", Address("org/my-bert_2.0", "v1")),
        ("hf://org/name@refs/pr/1", Address("org/name", "refs/pr/1")),
    ],
)
def test_addresses_are_read(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["hf://name", "hf://a/b/c", "hf://a/b@", "hf://", "hf://../b"])
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no address of a bundle; give hf://ORG/NAME"):
        parse_address(text)


def test_names_have_two_parts() -> None:
    assert is_name("org/name") and not is_name("name") and not is_name("./name")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(ValueError, match=r"org/name has no \.safetensors, and pickled weights"):
        check_safetensors(tmp_path, "org/name")
    (tmp_path / "model.safetensors").touch()
    check_safetensors(tmp_path, "org/name")
