from pathlib import Path

import pytest

from models.runtime import instruction_set
from models.runtime.instruction_set import integer_instructions


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_vnni amx_tile amx_int8", "AMX"),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", "VNNI"),
        ("flags\t\t: fpu avx2 avx_vnni", "VNNI"),
        ("flags\t\t: fpu avx avx2 fma", "none"),
        ("Features\t: fp asimd asimddp", "dot product"),
        ("Features\t: fp asimd i8mm", "dot product"),
        ("Features\t: fp asimd", "none"),
        ("bogomips\t: 5000", "unknown"),
    ],
)
def test_the_best_integer_instructions_are_named(flags: str, name: str) -> None:
    assert integer_instructions(f"processor\t: 0\nmodel name\t: amx_int8\n{flags}\n") == name


def test_a_system_without_the_file_does_not_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instruction_set, "CPUINFO", tmp_path / "none")
    assert integer_instructions() == "unknown"
