import socket
from collections.abc import Iterator

import pytest

from server.cli import serve
from server.cli.main import main


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of 127.0.0.1 that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield int(other.getsockname()[1])


def test_a_taken_port_is_one_sentence_before_models_load(
    taken: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: object) -> None:
        raise AssertionError("a bundle was read first")

    monkeypatch.setattr(serve, "load_bundle", never)
    assert main(["serve", "--port", str(taken)]) == 2
    assert capsys.readouterr().err == (
        f"eenet: port {taken} on 127.0.0.1 is taken by another process; stop that one, or give "
        f"another --port\n"
    )


def test_all_addresses_include_a_taken_one(taken: int) -> None:
    with pytest.raises(ValueError, match=f"port {taken} on 0.0.0.0 is taken"):
        serve.check_address("0.0.0.0", taken)


def test_a_free_port_is_free_afterwards_too() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.check_address("127.0.0.1", port)
    serve.check_address("localhost", port)
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(ValueError, match=r"cannot listen on 192\.0\.2\.1, port 8000 .*--host"):
        serve.check_address("192.0.2.1", 8000)


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(ValueError, match=r"host 'no\.such\.invalid' is unknown"):
        serve.check_address("no.such.invalid", 8000)
