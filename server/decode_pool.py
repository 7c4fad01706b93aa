"""Threads that decode payloads, and that never keep the process alive."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, ParamSpec, TypeVar

log = logging.getLogger(__name__)

PATIENCE_S = 0.5

P = ParamSpec("P")
T = TypeVar("T")


class _Job(NamedTuple):
    """A function to run, and the future for its result."""

    future: Future[Any]
    run: Callable[[], Any]

    def __call__(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.run()
        except BaseException as error:
            self.future.set_exception(error)
            del self  # the error's traceback holds this frame, which would hold error and payload
        else:
            self.future.set_result(result)


class DecodePool(Executor):
    """A pool of daemon threads.

    Python's own pool joins its threads when the interpreter ends. A decoder that is stuck in a
    hostile image cannot be stopped, and would then hold the process for ever.

    Args:
        workers: How many threads.
    """

    def __init__(self, workers: int) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"decode_{index}", daemon=True)
            for index in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function on a thread.

        Raises:
            RuntimeError: If the pool has been shut down.
        """
        job = _Job(Future(), lambda: fn(*args, **kwargs))
        with self._lock:
            if self._closed:
                raise RuntimeError("the decode pool has been shut down")
            self._jobs.put(job)
        return job.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        """Take no more jobs and end the threads.

        Args:
            wait: Whether to wait for them, for `PATIENCE_S` and no longer.
            cancel_futures: Whether to drop the jobs that have not begun.
        """
        with self._lock:
            self._closed = True
        if cancel_futures:
            with suppress(Empty):
                while job := self._jobs.get_nowait():
                    job.future.cancel()
        for _ in self._threads:
            self._jobs.put(None)
        if not wait:
            return
        until = time.monotonic() + PATIENCE_S
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))
        if busy := sum(thread.is_alive() for thread in self._threads):
            log.warning("%d decode threads are still busy; they end with the process", busy)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # it holds the image
