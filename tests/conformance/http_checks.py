"""Heads, connections and bodies that no honest client sends."""

import base64
import os
import time
from collections import Counter

from tests.conformance.checks import LEAK_MIB, REFUSED, Check, Figures, outcomes
from tests.conformance.image_checks import real_images
from tests.conformance.target import (
    CLOSED,
    JPEG,
    JSON,
    MIB,
    OPEN,
    Target,
    ask,
    at_once,
    exchange,
    head,
    post,
    statuses_in,
)

FORM = "multipart/form-data; boundary=b"
OFFER = (
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAM\r\n"
)
SLOW_CLIENTS, PATIENCE_S = 20, 30.0


def form(value: bytes, extra: str = "") -> tuple[bytes, str]:
    body = b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\n%s\r\n--b--\r\n' % value
    return body, FORM + extra


def endless_header(target: Target) -> Figures:
    """A header without end is cut before it costs memory or time."""
    block, sent = b"a" * MIB, 0
    with target.connect(timeout_s=5) as connection:
        connection.sendall(head("GET", target.probe)[:-2] + b"X: ")
        try:
            while sent < 64:
                connection.sendall(block)
                sent += 1
        except OSError:
            pass
    assert sent <= 8, f"took {sent} MiB of one header"
    return Figures(1, note=f"cut after {sent} MiB")


def header_flood(target: Target) -> Figures:
    """Too many or too long header fields are a 431, a long URL is a 414 or a 431."""
    many = head("GET", target.probe, extra="x: y\r\n" * 100_000)
    long = head("GET", target.probe, extra=f"x: {'y' * 40_000}\r\n")
    address = head("GET", "/" + "a" * 100_000)
    seen = Counter(statuses_in(exchange(target, many)) + statuses_in(exchange(target, long)))
    assert set(seen) <= {"431", "400"}, f"answered {dict(seen)}"
    return outcomes(seen + Counter(statuses_in(exchange(target, address))), {"431", "414", "400"})


def unknown_paths(target: Target) -> Figures:
    """5,000 paths that do not exist add no line to the metrics."""
    before = len(ask(target, "GET", target.page).body.splitlines())
    seen: Counter[str] = Counter()
    for _ in range(100):
        paths = [f"/{os.urandom(6).hex()}" for _ in range(50)]
        requests = b"".join(head("GET", path) for path in paths[1:])
        last = head("GET", paths[0], extra="Connection: close\r\n")
        seen.update(statuses_in(exchange(target, requests + last, pause_s=0)))
    added = len(ask(target, "GET", target.page).body.splitlines()) - before
    assert added <= 5, f"{added} lines of metrics more"
    return outcomes(seen, {"404", "429", "503", CLOSED})._replace(note=f"{added} lines more")


def slow_clients(target: Target) -> Figures:
    """Heads that trickle and bodies that stop end within 30 s, and hold up nobody."""
    opened = [target.connect() for _ in range(2 * SLOW_CLIENTS)]
    heads = set(opened[:SLOW_CLIENTS])
    for connection in opened:
        if connection in heads:
            connection.sendall(f"GET {target.probe} HTTP/1.1\r\nX: ".encode())
        else:
            connection.sendall(head("POST", target.path, 100_000, JPEG) + b"abc")
        connection.setblocking(False)
    alive, ends_s = set(opened), time.monotonic() + PATIENCE_S
    while alive and time.monotonic() < ends_s:
        time.sleep(0.5)
        for connection in list(alive):
            try:
                if connection in heads:
                    connection.send(b"a")
                if connection.recv(4096) == b"":
                    alive.discard(connection)
            except BlockingIOError:
                pass
            except OSError:
                alive.discard(connection)
    for connection in opened:
        connection.close()
    slow_heads = len(alive & heads)
    assert not alive, f"{slow_heads} heads and {len(alive) - slow_heads} bodies are open after 30 s"
    return Figures(len(opened), note="all closed")


def open_bodies(target: Target) -> Figures:
    """60 bodies of 31 MiB that lack their last byte are bounded together."""
    opened, seen = [], Counter[str]()
    body = b"\xff" * (31 * MIB - 1)
    for _ in range(60):
        connection = target.connect(timeout_s=0.3)
        opened.append(connection)
        try:
            connection.sendall(head("POST", target.path, 31 * MIB, JPEG) + body)
            seen[OPEN] += 1
        except OSError:
            seen["not read"] += 1
    for connection in opened:
        connection.close()
    return outcomes(seen, {OPEN, "not read"})


def unread_answers(target: Target) -> Figures:
    """A client that pipelines requests and reads no answer is not served on."""
    requests, sent = head("GET", target.page) * 500, 0
    with target.connect() as connection:
        connection.setblocking(False)
        ends_s, rest = time.monotonic() + 4, b""
        while time.monotonic() < ends_s:
            rest = rest or requests
            try:
                taken = connection.send(rest)
            except BlockingIOError:
                time.sleep(0.01)
                continue
            except OSError:
                break
            rest, sent = rest[taken:], sent + taken
    return Figures(sent // len(requests) * 500, note=f"{sent // 1024} KiB of requests taken")


def charsets(target: Target) -> Figures:
    """Charsets that are slow to decode, or unknown, are refused and not remembered."""
    body, _ = form(b"-" + b"a" * 400_000)
    seen = Counter([post(target, body, FORM + "; charset=punycode")])
    short, _ = form(b"x")
    for _ in range(300):
        seen[post(target, short, f"{FORM}; charset={os.urandom(8).hex()}{'a' * 20_000}")] += 1
    return outcomes(seen)


def part_headers(target: Target) -> Figures:
    """Forms of 300,000 part headers, or of 10,000 parts, are refused."""
    headers = b"--b\r\n" + b"x: y\r\n" * 300_000 + b"\r\nx\r\n--b--\r\n"
    part = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\ny\r\n'
    seen = at_once(2, lambda _: post(target, headers, FORM))
    return outcomes(seen + Counter([post(target, part * 10_000 + b"--b--\r\n", FORM)]))


def large_json(target: Target) -> Figures:
    """31 MiB of lists, of keys or of brackets are refused without building their objects."""
    lists = b'{"texts":[' + b"[]," * (31 * MIB // 3 - 9) + b"1]}"
    keys = b"{" + b",".join(b'"%x":1' % n for n in range(2_000_000)) + b"}"
    deep = b'{"text":' + b"[" * (8 * MIB)
    return outcomes(at_once(3, lambda n: post(target, (lists, keys, deep)[n], JSON)))


def large_bodies(target: Target) -> Figures:
    """31 MiB as a text, in base64, as a million items and as a form hold up nobody."""
    noise = os.urandom(23 * MIB)
    lines = base64.encodebytes(noise[: 22 * MIB]).replace(b"\n", b"\\n")
    whole, kind = form("ä".encode() * (15 * MIB))
    bodies = [
        (b'{"text":"%s"}' % ("ä" * (15 * MIB)).encode(), JSON),
        (b'{"text":"%s"}' % (b"\\u00e4" * (5 * MIB)), JSON),
        (b'{"texts":[%s"a"]}' % (b'"a",' * 1_000_000), JSON),
        (b'{"image":"%s"}' % base64.b64encode(noise), JSON),
        (b'{"image":"%s"}' % lines, JSON),
        (whole, kind),
        (whole.replace(b'"text"', b'"file"; filename="x"', 1), kind),
    ]
    seen = Counter(post(target, *each) for each in bodies)
    return outcomes(seen + at_once(2, lambda n: post(target, *bodies[3 * n])), REFUSED | {"200"})


def too_large_a_body(target: Target) -> Figures:
    """A body beyond the limit is a 413, whether or not its length is announced."""
    told = head("POST", target.path, 10**9, JPEG)
    chunked = head("POST", target.path, None, JPEG, "Transfer-Encoding: chunked\r\n")
    chunk = b"%x\r\n" % MIB + bytes(MIB) + b"\r\n"
    seen = Counter(statuses_in(exchange(target, told)))
    seen.update(statuses_in(exchange(target, chunked, *[chunk] * 40, pause_s=0)))
    return outcomes(seen, {"413", "429", CLOSED})


def offers_of_upgrade(target: Target) -> Figures:
    """A POST that offers HTTP/2 is read with its body, and the body is never run as a request."""
    body = real_images()[0]
    with_length = head("POST", target.path, len(body), JPEG, OFFER)
    chunked = head("POST", target.path, None, JPEG, OFFER + "Transfer-Encoding: chunked\r\n")
    in_chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    seen = Counter[str]()
    for parts in ([with_length + body], [with_length, body], [chunked, in_chunks]):
        seen.update(statuses_in(exchange(target, *parts)))
    assert set(seen) == {"200"}, f"answered {dict(seen)}"
    inner = head("GET", target.probe)
    outer = head("POST", target.path, len(inner), JPEG, OFFER)
    smuggled = statuses_in(exchange(target, outer, inner)) + statuses_in(
        exchange(target, outer + inner)
    )
    assert len(smuggled) == 2 and "200" not in smuggled, f"a body was run: {smuggled}"
    return Figures(5, note="200 x3, no body run")


def two_lengths(target: Target) -> Figures:
    """Requests that two readers could cut in two ways are refused, and the connection closed."""
    inner = head("GET", target.probe)
    odd = [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: +5\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Content-Length : 5\r\n",
    ]
    seen = Counter[str]()
    for extra in odd:
        request = head("POST", target.path, None, JPEG, extra) + b"0\r\n\r\n" + inner
        answers = statuses_in(exchange(target, request, wait_s=0.5))
        assert "200" not in answers[1:], f"{extra!r}: the body was run as a request: {answers}"
        seen.update(answers[:1])
    return outcomes(seen)


def other_hosts(target: Target) -> Figures:
    """No answer sends a client to the host of its Host header."""
    request = head("POST", target.path + "/", 0).replace(b"Host: x", b"Host: elsewhere.example")
    answer = exchange(target, request, wait_s=0.5)
    assert b"://elsewhere.example" not in answer, "sent elsewhere"
    return outcomes(Counter(statuses_in(answer)), REFUSED | {"307", "308", "422"})


CHECKS = (
    Check(endless_header),
    Check(header_flood),
    Check(unknown_paths),
    Check(slow_clients),
    Check(open_bodies),
    Check(unread_answers, growth_mib=LEAK_MIB),
    Check(charsets, growth_mib=LEAK_MIB),
    Check(part_headers),
    Check(large_json),
    Check(large_bodies),
    Check(too_large_a_body),
    Check(offers_of_upgrade),
    Check(two_lengths),
    Check(other_hosts),
)
