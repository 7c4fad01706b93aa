"""What proxies say of the clients behind them, believed of trusted ones alone."""

import ipaddress
from typing import Any

from server.settings import Settings

EVERYONE = "*"
MAPPED = 96  # bits before an IPv4 address that an IPv6 socket shows


def proxy_options(settings: Settings) -> dict[str, Any]:
    """The options of uvicorn's configuration by which it reads X-Forwarded-For and -Proto."""
    return {"proxy_headers": True, "forwarded_allow_ips": trusted_proxies(settings)}


def trusted_proxies(settings: Settings) -> list[str]:
    """The networks of the proxies that are believed, as uvicorn takes them.

    A socket that listens on `::` shows IPv4 clients as IPv6 addresses, so each network of IPv4 is
    listed as such, too.
    """
    names = settings.forwarded_allow_ips
    if EVERYONE in names:
        return [EVERYONE]
    networks = [ipaddress.ip_network(name) for name in names]
    mapped = [
        f"::ffff:{network.network_address}/{network.prefixlen + MAPPED}"
        for network in networks
        if network.version == 4
    ]
    return [*map(str, networks), *mapped]
