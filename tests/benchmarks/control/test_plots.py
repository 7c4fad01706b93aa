import numpy as np
import pytest

from benchmarks.control.plots import control_figure
from tests.benchmarks.control.control_logs import make_log

pytest.importorskip("matplotlib")


def test_a_column_shows_latency_parameter_and_exit_rates() -> None:
    held, alone = make_log(np.full(900, 1.9), 2.0), make_log(np.full(900, 2.6), 2.0)
    figure = control_figure([(held, alone), (held, None)], "images")
    axes = np.array(figure.axes).reshape(3, 2)
    lines = {line.get_label(): line.get_ydata() for line in axes[0, 0].lines}
    assert set(lines) == {"held", "frozen", "budget", "budget, mean of the window's"}
    assert np.allclose(lines["held"], 1.9) and np.allclose(lines["frozen"], 2.6)
    assert "frozen" not in {line.get_label() for line in axes[0, 1].lines}
    assert [axes[row, 0].get_ylabel() for row in range(3)] == [
        "rolling latency, ms",
        "parameter",
        "exit rates, %",
    ]
    assert len(axes[2, 0].collections) == 2  # an area an exit
