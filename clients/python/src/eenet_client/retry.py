"""When a call is sent again."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from eenet_client.calls import Call
from eenet_client.errors import (
    ConnectionFailed,
    EENetError,
    NotReady,
    StatusError,
    TimedOut,
    TooManyRequests,
)

FIRST_WAIT_S = 0.1  # where the server does not say how long to wait; doubled with every try
SPREAD = 0.25  # of a wait, at random, so that many clients do not come back at once


@dataclass(frozen=True, slots=True)
class Retries:
    """Decides whether to send a call again, and when.

    After a 429 or a 503 the server has not run the call, so any call may be sent again. If a
    connection breaks before the answer, nobody knows, so only a repeatable call is. After a timeout
    none is: the server may still be at work, and sending more would not help it.

    Attributes:
        most: Most times that a call is sent again.
        most_wait_s: Longest wait; a server that asks for a longer one is not asked again.
        random: Returns numbers from 0 to 1.
    """

    most: int = 3
    most_wait_s: float = 30.0
    random: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        if self.most < 0 or self.most_wait_s < 0:
            raise ValueError(
                f"retries {self.most} and most_wait_s {self.most_wait_s} must not be negative"
            )

    def wait_s(self, sent: int, call: Call[Any], error: EENetError) -> float | None:
        """Return how long to wait before a call is sent again; None: it is not.

        Args:
            sent: How often it was sent, from 1.
            call: The call.
            error: Its latest error.
        """
        if sent > self.most or not self._may_repeat(call, error):
            return None
        wait_s = FIRST_WAIT_S * 2.0 ** (sent - 1)
        if isinstance(error, StatusError) and error.retry_after_s is not None:
            wait_s = error.retry_after_s
        if wait_s > self.most_wait_s:
            return None
        return wait_s * (1 + SPREAD * self.random())

    def _may_repeat(self, call: Call[Any], error: EENetError) -> bool:
        if isinstance(error, TooManyRequests | NotReady):
            return True
        if isinstance(error, TimedOut) or not isinstance(error, ConnectionFailed):
            return False
        return call.is_repeatable or isinstance(error.__cause__, httpx.ConnectError)


def connection_error(error: httpx.HTTPError) -> ConnectionFailed:
    """Return the error of this package for one of httpx's; raise it from that."""
    try:
        where = f"{error.request.url.copy_with(query=None)}"
    except RuntimeError:  # it has no request
        where = "the server"
    if isinstance(error, httpx.TimeoutException):
        return TimedOut(f"{where} did not answer in time; raise timeout_s or look at its load")
    return ConnectionFailed(f"{where}: {error or type(error).__name__}")
