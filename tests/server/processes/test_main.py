import socket

import pytest

from server.processes.main import listen


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "", "0.0.0.0"])
def test_every_address_of_a_host_is_bound_to_one_port(host: str) -> None:
    first = listen(host, 0)
    port = first[0].getsockname()[1]
    second = listen(host, port)  # another front-end
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
