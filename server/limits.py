"""The bounds of what clients may send and hold."""

from dataclasses import dataclass
from typing import Final

SMALL_SHARE: Final = 0.25  # of the bytes in flight, for small bodies alone


@dataclass(frozen=True)
class Limits:
    """The bounds of one process that speaks HTTP; sizes in bytes.

    Attributes:
        max_head: Of all that is not a body: head, chunk sizes and extensions, trailers.
        max_fields: Header fields.
        max_url: Of the URL.
        max_body: Of one body.
        max_held: Of all bodies that are coming in or unanswered.
        max_connections: Connections.
        first_byte_s: Seconds until the first byte of a connection.
        head_s: Seconds from the first byte of a head to its last.
        body_s: Seconds from the head to the last byte of the body.
        keep_alive_s: Seconds between two requests, or without taking anything of an answer.
    """

    max_head: int = 32 * 1024
    max_fields: int = 100
    max_url: int = 16 * 1024
    max_body: int = 32 * 2**20
    max_held: int = 128 * 2**20
    max_connections: int = 2048
    first_byte_s: float = 20.0
    head_s: float = 10.0
    body_s: float = 20.0
    keep_alive_s: float = 75.0
