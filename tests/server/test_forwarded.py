"""Whom the server believes about clients behind a proxy."""

import asyncio
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.config import Config as UvicornConfig

from server.forwarded import proxy_options, trusted_proxies
from server.http_protocol import http_config
from server.settings import Settings

FORWARDED = [(b"x-forwarded-for", b"203.0.113.9"), (b"x-forwarded-proto", b"https")]


def seen(peer: tuple[str, int] | None, headers: Any = FORWARDED, **given: Any) -> tuple[Any, str]:
    """Client and scheme of a request that comes from a peer."""
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)

    config: UvicornConfig = http_config(app, 1, **proxy_options(Settings(**given)))
    config.load()
    scope = {"type": "http", "client": peer, "scheme": "http", "headers": headers}
    asyncio.run(config.loaded_app(scope, None, None))  # type: ignore[arg-type]
    client = scopes[0]["client"]
    return client and client[0], scopes[0]["scheme"]


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_proxies_on_this_host_are_believed(peer: str) -> None:
    assert seen((peer, 1)) == ("203.0.113.9", "https")


@pytest.mark.parametrize("peer", [("10.0.0.7", 1), ("::ffff:10.0.0.7", 1), ("fe80::1", 1), None])
def test_no_other_is(peer: tuple[str, int] | None) -> None:
    assert seen(peer) == (peer and peer[0], "http")


@pytest.mark.parametrize("peer", [("10.0.0.7", 1), ("::ffff:10.9.0.7", 1), ("fe80::7", 1)])
def test_networks_may_be_named(peer: tuple[str, int]) -> None:
    trusted = {"forwarded_allow_ips": "10.0.0.0/8, fe80::/10"}
    assert seen(peer, **trusted) == ("203.0.113.9", "https")
    assert seen(("127.0.0.1", 1), **trusted) == ("127.0.0.1", "http")


def test_a_client_cannot_pretend_to_be_another() -> None:
    headers = [(b"x-forwarded-for", b"1.1.1.1, 203.0.113.9, 10.0.0.7")]
    assert seen(("10.0.0.8", 1), headers, forwarded_allow_ips="10.0.0.0/8")[0] == "203.0.113.9"


@pytest.mark.parametrize("peer", [("192.0.2.1", 1), None])
def test_all_may_be_believed_also_on_a_unix_socket(peer: tuple[str, int] | None) -> None:
    assert seen(peer, forwarded_allow_ips="10.0.0.1,*") == ("203.0.113.9", "https")


def test_the_environment_of_uvicorn_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    assert trusted_proxies(Settings())[:2] == ["127.0.0.1/32", "::1/128"]
    assert seen(("192.0.2.1", 1)) == ("192.0.2.1", "http")
    assert not http_config(None, 1).proxy_headers
    assert Config(None).proxy_headers  # type: ignore[arg-type]


@pytest.mark.parametrize("proxy", ["proxy.example", "10.0.0.1/8", "10.0.0", ""])
def test_what_is_no_address_is_named(proxy: str) -> None:
    with pytest.raises(ValueError, match="is no address or network of a proxy"):
        Settings(forwarded_allow_ips=proxy)  # type: ignore[arg-type]
