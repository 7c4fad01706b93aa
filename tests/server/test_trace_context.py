import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import TraceState, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server.trace_context import TraceContext, read_state, read_trace_context

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


def read(parent: str | bytes, *states: bytes) -> TraceContext | None:
    value = parent if isinstance(parent, bytes) else parent.encode("latin-1")
    fields = [(b"tracestate", state) for state in states]
    return read_trace_context([(b"host", b"a"), (b"traceparent", value), *fields])


def test_a_good_header_is_read() -> None:
    assert read(GOOD) == TraceContext(TRACE, SPAN, 1, "")
    assert read(GOOD, b"a=1,b@c= 2") == TraceContext(TRACE, SPAN, 1, "a=1,b@c= 2")
    assert read(f" {GOOD}\t") == TraceContext(TRACE, SPAN, 1, "")
    unsampled = read(f"00-{TRACE}-{SPAN}-00")
    assert unsampled is not None and not unsampled.sampled


def test_bits_that_have_no_meaning_yet_are_dropped() -> None:
    context = read(f"00-{TRACE}-{SPAN}-ff")
    assert context is not None and context.flags == 3 and context.sampled


@pytest.mark.parametrize("value", [f"cc-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-what-comes"])
def test_a_later_version_is_read_as_far_as_this_one_goes(value: str) -> None:
    assert read(value) == TraceContext(TRACE, SPAN, 1, "")


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        f"{GOOD}-",
        f"{GOOD}-00",
        f"{GOOD}.",
        f"ff-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01.what",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"00-{TRACE}-{SPAN}-0A",
        f"0A-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}0-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-001",
        f"00-{TRACE}-{SPAN}",
        f"00_{TRACE}_{SPAN}_01",
        f"0x-{TRACE}-{SPAN}-01",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00-{TRACE[:-1]}\u00b2-{SPAN}-01",
        f"{GOOD},{GOOD}",
        f"00-{TRACE} -{SPAN}-01",
        f"{GOOD}\n",
    ],
)
def test_a_malformed_header_counts_as_absent(value: str) -> None:
    assert read(value, b"a=1") is None


def test_one_request_is_in_one_trace() -> None:
    twice = [(b"traceparent", GOOD.encode())] * 2
    assert read_trace_context(twice) is None
    assert read_trace_context([]) is None
    assert read_trace_context([(b"tracestate", b"a=1")]) is None


@given(st.binary(max_size=80))
def test_no_header_is_an_error(value: bytes) -> None:
    context = read(value, value)
    assert context is None or len(context.trace_id) == 32


@given(
    st.integers(0, 300), st.integers(0, 2**129), st.integers(0, 2**65), st.integers(0, 260),
    st.sampled_from(["", "-", "-00", "x"]),
)  # fmt: skip
def test_it_reads_what_the_official_reader_does(
    version: int, trace: int, span: int, flags: int, more: str
) -> None:
    value = f"{version:02x}-{trace:032x}-{span:016x}-{flags:02x}{more}"
    theirs = get_current_span(
        TraceContextTextMapPropagator().extract({"traceparent": value})
    ).get_span_context()
    ours = read(value)
    # Theirs reads no more than the beginning of later versions, and takes whatever follows.
    if ours is not None:
        assert theirs.is_valid
        assert ours.trace_id == f"{theirs.trace_id:032x}"
        assert ours.span_id == f"{theirs.span_id:016x}"
        assert ours.sampled == theirs.trace_flags.sampled
    elif more != "x":
        assert not theirs.is_valid


@given(st.text(string.printable, max_size=60))
def test_one_character_more_or_less_is_malformed(text: str) -> None:
    for value in (GOOD[:-1], GOOD[1:], f"{GOOD}{text.strip() or '0'}"):
        assert read(value) is None


def test_members_of_several_headers_are_one_list() -> None:
    assert read_state([b"a=1, b=2", b"", b" ,c=3\t"]) == "a=1,b=2,c=3"


@pytest.mark.parametrize(
    "value",
    [
        b"a",
        b"=1",
        b"a=",
        b"A=1",
        b"1a=2",
        b"a b=1",
        b"a=1=2",
        b"a=1,a=2",
        b"a@=1",
        b"@a=1",
        b"a@b@c=1",
        b"a@1b=1",
        b"a=\x07",
        b"a=\xe9",
        b"a" * 257 + b"=1",
        b"a=" + b"1" * 257,
        b"a@" + b"b" * 15 + b"=1",
        b",".join([b"a%d=1" % number for number in range(33)]),
    ],
)
def test_a_malformed_state_is_dropped_and_the_trace_kept(value: bytes) -> None:
    assert read(GOOD, value) == TraceContext(TRACE, SPAN, 1, "")


def test_the_longest_members_are_kept() -> None:
    most = b",".join([b"a%d=1" % number for number in range(32)])
    assert read_state([most]) == most.decode()
    for value in (b"a" * 256 + b"=" + b"x" * 256, b"1" + b"a" * 240 + b"@" + b"b" * 14 + b"=x"):
        assert read_state([value]) == value.decode()


keys = st.text(f"{string.ascii_lowercase}{string.digits}_*/-", max_size=9).map("a{}".format)
marks = sorted(set(string.punctuation) - set(",="))
values = st.text([*string.ascii_letters, *string.digits, *marks], min_size=1, max_size=9)


@given(st.dictionaries(keys, values, max_size=9))
def test_the_official_reader_reads_what_is_passed_on(members: dict[str, str]) -> None:
    state = read_state([",".join([f"{key}={value}" for key, value in members.items()]).encode()])
    assert dict(TraceState.from_header([state]).items()) == members
