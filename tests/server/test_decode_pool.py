from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from server.decode_pool import PATIENCE_S, DecodePool
from server.lifespan import SingleProcess
from server.metrics import Metrics
from server.settings import Settings


def test_results_and_errors_come_back() -> None:
    pool = DecodePool(2)
    assert pool.submit(divmod, 7, 2).result(5) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result(5)
    name = pool.submit(lambda: threading.current_thread().name).result(5)
    assert name.startswith("decode_")
    pool.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit(divmod, 7, 2)


def test_shutdown_ends_the_threads() -> None:
    pool = DecodePool(3)
    started = time.perf_counter()
    pool.shutdown()
    assert time.perf_counter() - started < PATIENCE_S
    assert not any(thread.is_alive() for thread in pool._threads)


def test_shutdown_waits_for_no_stuck_job_and_drops_those_behind() -> None:
    begun, release, pool = threading.Event(), threading.Event(), DecodePool(1)
    stuck = pool.submit(lambda: begun.set() or release.wait(30))
    assert begun.wait(5)
    behind = pool.submit(divmod, 7, 2)
    started = time.perf_counter()
    pool.shutdown()
    assert time.perf_counter() - started < PATIENCE_S + 1
    assert behind.cancelled() and not stuck.done()
    release.set()
    assert stuck.result(5)


def test_the_service_stops_though_a_decoder_is_stuck(shipped_bundle: Path) -> None:
    release = threading.Event()
    settings = Settings(bundle=(shipped_bundle,), decode_workers=1)

    async def run() -> float:
        service = SingleProcess(settings, Metrics(CollectorRegistry(), "0"))
        service.start(asyncio.get_running_loop())
        service.front.decoders.quick.submit(release.wait, 60)
        started = time.perf_counter()
        await service.stop()
        return time.perf_counter() - started

    try:
        assert asyncio.run(run()) < PATIENCE_S + 2
    finally:
        release.set()


def test_a_stuck_job_does_not_hold_the_process() -> None:
    code = (
        "import threading; from server.decode_pool import DecodePool\n"
        "DecodePool(1).submit(threading.Event().wait)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0


def test_a_job_that_raises_is_freed_without_the_garbage_collector() -> None:
    class Payload:
        pass

    def fail(payload: Payload) -> None:
        raise ValueError("damaged")

    pool, payload = DecodePool(1), Payload()
    gone = weakref.ref(payload)
    gc.disable()
    try:
        future = pool.submit(fail, payload)
        assert isinstance(future.exception(timeout=10), ValueError)
        del future, payload
        pool.submit(int).result(timeout=10)  # the thread has let go of the job before
        assert gone() is None
    finally:
        gc.enable()
        pool.shutdown()
