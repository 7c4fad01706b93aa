import os
import time

import pytest
from prometheus_client import CollectorRegistry

from server.process_metrics import ProcessCollector, ProcessName, read_use


def test_this_process_is_read() -> None:
    before = read_use(os.getpid())
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    after = read_use(os.getpid())
    assert after.cpu_s > before.cpu_s
    assert after.resident_bytes > 10 * 2**20
    assert after.open_fds >= 3
    assert 0 < time.time() - after.started_s < 24 * 3600


def test_each_process_has_its_role_and_one_that_has_ended_is_left_out() -> None:
    registry = CollectorRegistry()
    pids = {ProcessName("engine", 0): os.getpid(), ProcessName("engine", 1): 2**22 + 1}
    registry.register(ProcessCollector(lambda: pids))
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"):
        assert registry.get_sample_value(name, {"role": "engine", "index": "0"}) is not None
        assert registry.get_sample_value(name, {"role": "engine", "index": "1"}) is None


def test_a_process_that_is_gone_is_an_error() -> None:
    with pytest.raises(OSError):
        read_use(2**22 + 1)
