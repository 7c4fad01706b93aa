"""Progress of long work on standard error, with elapsed and remaining time."""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

BAR_WIDTH = 24
BAR_EVERY_S = 0.1
LINE_EVERY_S = 5.0  # where standard error is a file or a pipe
SHOWN_AFTER_S = 1.0  # elapsed time next to a step


def format_seconds(seconds: float) -> str:
    """A duration as minutes and seconds, or hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Shows how much of some work is done: a bar on a terminal, else a line now and then.

    Args:
        label: Names the work.
        total: Amount of work.
        done: Amount done before this run, which takes no time now.
        stream: Where to write; standard error by default.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        label: str,
        total: float,
        *,
        done: float = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = label
        self._total = total
        self._before = done
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._started_s = self._shown_s = clock()
        self._is_terminal = self._stream.isatty()
        self._has_bar = False

    def update(self, done: float, note: str = "") -> None:
        """Show the amount done, unless something was shown a moment ago."""
        now_s = self._clock()
        if now_s - self._shown_s < (BAR_EVERY_S if self._is_terminal else LINE_EVERY_S):
            return
        self._shown_s = now_s
        text = self._line(done, now_s - self._started_s, note)
        if self._is_terminal:
            filled = round(BAR_WIDTH * min(done / self._total, 1)) if self._total else BAR_WIDTH
            self._write(f"\r\x1b[K[{'#' * filled:{BAR_WIDTH}}] {text}")
            self._has_bar = True
        else:
            self._write(f"{text}\n")

    def log(self, line: str) -> None:
        """Print a line that stays; the bar goes on below it."""
        self._write(f"{self._clear()}{line}\n")

    def close(self) -> None:
        """Take the bar away."""
        self._write(self._clear())

    def _line(self, done: float, elapsed_s: float, note: str) -> str:
        parts = [f"{format_seconds(elapsed_s)} elapsed"]
        if done > self._before and self._total > done:
            left_s = elapsed_s / (done - self._before) * (self._total - done)
            parts.append(f"about {format_seconds(left_s)} left")
        counts = f"{self._label} {done:.0f}/{self._total:.0f}"
        return f"{counts} {note}".rstrip() + f" ({', '.join(parts)})"

    def _clear(self) -> str:
        cleared, self._has_bar = "\r\x1b[K" if self._has_bar else "", False
        return cleared

    def _write(self, text: str) -> None:
        if text:
            self._stream.write(text)
            self._stream.flush()


@contextmanager
def progress(label: str, total: float, *, done: float = 0) -> Iterator[Progress]:
    """Show progress on standard error; the bar is gone at the end, however it comes."""
    shown = Progress(label, total, done=done)
    try:
        yield shown
    finally:
        shown.close()


@contextmanager
def time_passes(label: str, total_s: float) -> Iterator[None]:
    """Show progress of work that is known to take `total_s` seconds."""
    ended = threading.Event()
    with progress(label, math.ceil(total_s)) as shown:
        started_s = time.monotonic()

        def tick() -> None:
            while not ended.wait(BAR_EVERY_S):
                shown.update(min(time.monotonic() - started_s, total_s), "s")

        ticker = threading.Thread(target=tick, daemon=True)
        ticker.start()
        try:
            yield
        finally:
            ended.set()
            ticker.join()


class StepLog:
    """Prints the steps of long work: their number, the elapsed time, the time left.

    Args:
        total: Number of steps, if it is known.
        similar: Whether steps take about equally long, so that the rest can be estimated.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        total: int | None = None,
        *,
        similar: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._similar = similar
        self._clock = clock
        self._started_s = clock()
        self._begun = 0

    def __call__(self, step: str) -> None:
        """Print a step that begins."""
        elapsed_s = self._clock() - self._started_s
        times = []
        if elapsed_s >= SHOWN_AFTER_S:
            times.append(f"{format_seconds(elapsed_s)} elapsed")
            if self._similar and self._total is not None and self._begun:
                left_s = elapsed_s / self._begun * (self._total - self._begun)
                times.append(f"about {format_seconds(left_s)} left")
        self._begun += 1
        number = "" if self._total is None else f"[{self._begun}/{self._total}] "
        shown = f" ({', '.join(times)})" if times else ""
        print(f"{number}{step}{shown} ...", file=sys.stderr, flush=True)
