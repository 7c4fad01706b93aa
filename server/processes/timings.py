"""What engines tell front-ends about traced requests, and these tell control."""

from collections.abc import Iterator, Sequence
from typing import Any

from server.engine.request import StageTiming
from server.processes.wire import Message
from server.trace_records import RequestRecord, record_of


def pack_timings(finished: Sequence[Any]) -> dict[str, list[StageTiming]]:
    """Return when stages ran for requests of which that is wanted, by number.

    Args:
        finished: Requests of other processes, `RemoteRequest`.
    """
    return {str(each.number): each.timings for each in finished if each.timings is not None}


def unpack_timings(message: Message) -> Iterator[tuple[int, list[StageTiming]]]:
    """Yield the number of each request with timings, and these."""
    for number, timings in message.fields.get("timings", {}).items():
        yield int(number), [StageTiming(*each) for each in timings]


def pack_records(records: Sequence[RequestRecord], lost: int) -> Message:
    """Pack what a front-end recorded.

    Args:
        records: Requests.
        lost: Spans of others, for which there was no room.
    """
    return Message("spans", {"records": records, "lost": lost})


def unpack_records(message: Message) -> tuple[list[RequestRecord], int]:
    """Unpack what `pack_records` packed."""
    return [record_of(each) for each in message.fields["records"]], message.fields["lost"]
