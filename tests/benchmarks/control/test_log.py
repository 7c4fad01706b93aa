from pathlib import Path

import numpy as np
import pytest

from benchmarks.control.log import columns, load_logs, save_logs
from tests.benchmarks.control.control_logs import make_log


def test_logs_come_back_as_they_were(tmp_path: Path) -> None:
    logs = [make_log([1.5, 2.25], [2.0, np.nan]), make_log([3.0], 4.0)]
    save_logs(logs, tmp_path / "logs.npz")
    for log, back in zip(logs, load_logs(tmp_path / "logs.npz"), strict=True):
        assert back.about == log.about
        for name in columns():
            np.testing.assert_allclose(getattr(back, name), getattr(log, name), rtol=1e-6)


def test_columns_of_one_log_are_of_one_length() -> None:
    with pytest.raises(ValueError, match="disagree"):
        make_log([1.0, 2.0], 2.0, phase=np.zeros(3, np.int8))


def test_another_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="holds no logs"):
        load_logs(tmp_path / "other.npz")
