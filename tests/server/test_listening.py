from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.cli import serve
from server.cli.main import main
from server.listening import (
    check_address,
    listen,
    listen_unix,
    open_listeners,
    reach_beyond_host,
    url_of,
)
from server.settings import Settings


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of 127.0.0.1 that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield int(other.getsockname()[1])


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("admin", [False, True])
def test_a_taken_port_is_one_sentence_before_models_load(
    taken: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, admin: bool
) -> None:
    def never(*given: object) -> None:
        raise AssertionError("a bundle was read first")

    monkeypatch.setattr(serve, "bundles_at_start", never)
    of = "admin-" if admin else ""
    assert main(["serve", "--port", "0", f"--{of}port", str(taken)]) == 2
    assert capsys.readouterr().err == (
        f"eenet: port {taken} on 127.0.0.1 is taken by another process; stop that one, or give "
        f"another --{of}port\n"
    )


def test_all_addresses_include_a_taken_one(taken: int) -> None:
    for bind in (check_address, listen):
        with pytest.raises(ValueError, match=f"port {taken} on 0.0.0.0 is taken"):
            bind("0.0.0.0", taken)


def test_a_free_port_is_free_afterwards_too() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    check_address("127.0.0.1", port)
    check_address("localhost", port)
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(ValueError, match=r"cannot listen on 192\.0\.2\.1, port 8000 .*--host"):
        check_address("192.0.2.1", 8000)


@pytest.mark.parametrize("host", ["no.such.invalid", "[::1", "a..b", "x" * 300])
def test_an_unknown_host_is_named_with_its_port(host: str) -> None:
    with pytest.raises(ValueError, match=r"port 8000 of host .* which is unknown") as told:
        check_address(host, 8000)
    assert host in str(told.value) and "--host" in str(told.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "", "0.0.0.0"])
def test_every_address_of_a_host_is_bound_to_one_port(host: str) -> None:
    first = listen(host, 0, sharers=2)
    port = first[0].getsockname()[1]
    second = listen(host, port, sharers=2)  # another front-end
    try:
        assert {sock.getsockname()[1] for sock in (*first, *second)} == {port}
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        families = {family for family, *_ in found}
        assert {sock.family for sock in first} == families == {sock.family for sock in second}
    finally:
        for sock in (*first, *second):
            sock.close()


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("[::1]", ["::1"]),
        ("::1", ["::1"]),
        ("::", ["::1", "127.0.0.1"]),
        ("[::]", ["::1", "127.0.0.1"]),
        ("0:0:0:0:0:0:0:0", ["::1", "127.0.0.1"]),
    ],
)
def test_ipv6_comes_in_brackets_or_without_and_all_of_it_takes_ipv4(
    host: str, reached: list[str]
) -> None:
    check_address(host, 0)
    (sock,) = listen(host, 0)
    with sock:
        sock.listen()
        port = sock.getsockname()[1]
        for address in ("::1", "127.0.0.1"):
            if address in reached:
                socket.create_connection((address, port), timeout=5).close()
            else:
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection((address, port), timeout=5)
        shown = ipaddress.ip_address(host.strip("[]"))
        assert url_of(sock, "http") == f"http://[{shown}]:{port}"


@pytest.mark.parametrize(
    ("host", "public"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True), ("", True)]
)
def test_other_machines_reach_what_is_not_loopback(host: str, public: bool) -> None:
    sockets = listen(host, 0)
    assert reach_beyond_host(sockets) is public
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize(
    ("host", "flags", "named"),
    [
        ("127.0.0.1", {}, []),
        ("0.0.0.0", {}, ["--api-keys", "--admin-keys"]),
        ("0.0.0.0", {"admin_port": 0}, ["--api-keys"]),
        ("0.0.0.0", {"api_keys": "f"}, ["--admin-keys"]),
        ("0.0.0.0", {"api_keys": "f", "admin_keys": "f"}, []),
        ("127.0.0.1", {"admin_port": 0, "admin_host": "0.0.0.0"}, ["--admin-keys"]),
        ("0.0.0.0", {"api_keys": "f", "admin_port": 0}, []),
    ],
)
def test_one_warning_says_what_strangers_may_do(
    host: str, flags: dict[str, object], named: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    from server.listening import warn_if_open

    settings = Settings(host=host, port=0, **flags)  # type: ignore[arg-type]
    with open_listeners(settings, 2) as listeners:
        warn_if_open(settings, listeners)
    warnings = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert len(warnings) == bool(named)
    for flag in ("--api-keys", "--admin-keys"):
        assert (flag in "".join(warnings)) == (flag in named)


def test_a_unix_socket_is_shared_and_its_file_removed(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    settings = Settings(uds=path)
    with open_listeners(settings, 2) as listeners:
        (one,), (other,) = listeners.main
        assert one is other and url_of(one, "http") == f"http+unix://{path}"
        assert not reach_beyond_host([one])
        one.listen()
        with pytest.raises(ValueError, match=r"s\.sock is taken by another process"):
            listen_unix(path)
    assert not path.exists()


def test_the_unix_socket_of_a_killed_server_makes_room_and_another_file_does_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s.sock"
    listen_unix(path).close()
    assert path.exists()
    with open_listeners(Settings(uds=path), 1):
        path.unlink()
        path.write_text("of somebody else")
    assert path.read_text() == "of somebody else"
    with pytest.raises(ValueError, match="is no socket; remove it"):
        listen_unix(path)


def no_folder(path: Path) -> Path:
    return path / "none" / "s.sock"


def too_long(path: Path) -> Path:
    return path / ("x" * 200)


@pytest.mark.parametrize("make", [no_folder, too_long])
def test_a_bad_path_of_a_socket_is_one_sentence(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"cannot listen on .* give another --uds"):
        listen_unix(make(tmp_path))


def test_a_socket_may_be_handed_over_by_number() -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        with open_listeners(Settings(fd=given.fileno()), 2) as listeners:
            assert listeners.main[0][0].getsockname() == given.getsockname()
        assert given.fileno() >= 0


def test_a_number_that_is_no_socket_is_named(tmp_path: Path) -> None:
    closed = os.open(os.devnull, os.O_RDONLY)
    os.close(closed)
    for number in (closed, os.open(os.devnull, os.O_RDONLY)):
        with (
            pytest.raises(ValueError, match=f"file descriptor {number} is no socket .*--fd"),
            open_listeners(Settings(fd=number), 1),
        ):
            pass
    os.close(number)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with (
        datagrams,
        pytest.raises(ValueError, match="no stream socket"),
        open_listeners(Settings(fd=datagrams.fileno()), 1),
    ):
        pass
