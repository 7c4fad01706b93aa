"""W3C Trace Context: what `traceparent` and `tracestate` say, read strictly.

A header that breaks the rules counts as absent, as the recommendation demands: the request is
answered, and its trace begins here.
"""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

SAMPLED, RANDOM = 1, 2  # bits of the flags
TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
NO_VERSION: Final = b"ff"
NO_TRACE, NO_SPAN = b"0" * 32, b"0" * 16
KEY = r"[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13}"
VALUE = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
MEMBER = re.compile(rf"({KEY})=({VALUE})")
MOST_MEMBERS = 32
SPACE = " \t"
Headers = Iterable[tuple[bytes, bytes]]


class TraceContext(NamedTuple):
    """A client's span, of which this server's work is a part.

    Attributes:
        trace_id: 32 hexadecimal digits.
        span_id: 16 hexadecimal digits.
        flags: SAMPLED and RANDOM; other bits have no meaning yet.
        state: What tracing systems keep for themselves, as `tracestate` has it; "" without.
    """

    trace_id: str
    span_id: str
    flags: int
    state: str

    @property
    def sampled(self) -> bool:
        """Whether the client records its span."""
        return bool(self.flags & SAMPLED)


def read_trace_context(headers: Headers) -> TraceContext | None:
    """Read the trace of a request; None without one, or if it is malformed.

    Args:
        headers: The request's, with names in lower case.
    """
    parents, states = list[bytes](), list[bytes]()
    for name, value in headers:
        if name == b"traceparent":
            parents.append(value)
        elif name == b"tracestate":
            states.append(value)
    if len(parents) != 1:
        return None
    match = TRACEPARENT.fullmatch(parents[0].strip(b" \t"))
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    # Version 00 ends with the flags; later ones may go on behind another dash.
    if version == NO_VERSION or (version == b"00" and more):
        return None
    if trace_id == NO_TRACE or span_id == NO_SPAN:
        return None
    bits = int(flags, 16) & (SAMPLED | RANDOM)
    state = read_state(states) if states else ""
    return TraceContext(trace_id.decode(), span_id.decode(), bits, state)


def read_state(values: Iterable[bytes]) -> str:
    """Return the members of `tracestate` headers as one list; "" if one is malformed."""
    members: dict[str, str] = {}
    for part in b",".join(values).decode("latin-1").split(","):
        member = part.strip(SPACE)
        if not member:  # allowed, and means nothing
            continue
        match = MEMBER.fullmatch(member)
        if match is None or match[1] in members or len(members) == MOST_MEMBERS:
            return ""
        members[match[1]] = match[2]
    return ",".join([f"{key}={value}" for key, value in members.items()])
