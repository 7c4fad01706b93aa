"""Who may ask for what: keys, web pages of other sites, and the listener that a route is on."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from starlette.types import Scope

from server.errors import Forbidden, NotHere, ServeError, Unauthorized
from server.keys import KeyFile, KeySet, digest_of
from server.quality.feedback import NOBODY
from server.settings import Settings

CHECK_S = 1.0  # between two looks at the files of keys
READING = ("GET", "HEAD", "OPTIONS")  # methods that change nothing
LENGTH_HEADER = "Inference-Header-Content-Length"  # of bodies with binary tensors
OWN_SITE = (b"same-origin", b"none")  # values of Sec-Fetch-Site; none: typed by the user
Headers = list[tuple[bytes, bytes]]


class Group(StrEnum):
    """Routes that one kind of key opens."""

    OPEN = "open"
    PREDICTION = "prediction"
    ADMIN = "admin"


# The first entry that is the path, or a folder of it, decides; a path that has none is ADMIN, so
# that a route that is forgotten here is shut.
GROUPS = (
    ("/livez", Group.OPEN),
    ("/readyz", Group.OPEN),
    ("/health", Group.OPEN),
    ("/healthz", Group.OPEN),
    ("/ping", Group.OPEN),
    ("/v2/health", Group.OPEN),
    ("/docs", Group.OPEN),
    ("/openapi.json", Group.OPEN),
    ("/predict", Group.PREDICTION),
    ("/feedback", Group.PREDICTION),
    ("/classify", Group.PREDICTION),
    ("/models", Group.PREDICTION),
    ("/v1/models", Group.PREDICTION),
    ("/v2/repository", Group.ADMIN),
    ("/v2", Group.PREDICTION),
)
ALLOWED_HEADERS = "Authorization, Content-Encoding, Content-Type, X-Request-ID"  # of web pages
NO_KEY = (
    "this server asks for a key: send it as Authorization: Bearer KEY",
    'Bearer realm="eenet"',
)
UNKNOWN_KEY = ("the key is not known here", 'Bearer realm="eenet", error="invalid_token"')


def group_of(path: str) -> Group:
    """The group of a path below the root path."""
    for prefix, group in GROUPS:
        if path == prefix or path.startswith(f"{prefix}/"):
            return group
    return Group.ADMIN


@dataclass
class Gate:
    """Lets requests pass to one listener, or refuses them.

    Attributes:
        groups: Those that the listener has.
        keys: Of each group that needs one.
        origins: Web pages that may ask for predictions, such as https://example.com; `*`: all.
        root_path: Path under which a proxy shows this server, such as /ml.
        closing: Whether every answer ends its connection, since the server is about to stop.
    """

    groups: frozenset[Group] = frozenset(Group)
    keys: Mapping[Group, KeySet] = field(default_factory=dict)
    origins: tuple[str, ...] = ()
    root_path: str = ""
    closing: bool = False

    def enter(self, scope: Scope) -> int:
        """Let a request pass; return the owner of its answers.

        Raises:
            NotHere: If the listener has no such route.
            Forbidden: If another site's page asks, or the key opens other routes alone.
            Unauthorized: If a key is needed, and there is none or an unknown one.
        """
        path: str = scope["path"]
        group = group_of(path)
        if group not in self.groups:
            raise NotHere(f"{path} is not on this port; docs/operations.md says which port has it")
        headers = dict(scope["headers"])
        if scope["method"] not in READING and (group is Group.ADMIN or path == "/feedback"):
            self._refuse_other_sites(headers, group)
        if group is Group.OPEN:
            return NOBODY
        return self.owner_of(headers.get(b"authorization"), group)

    def owner_of(self, authorization: bytes | None, group: Group) -> int:
        """Return the owner of the answers to a request with this header, or without it.

        Raises:
            Forbidden: If the key opens other routes alone.
            Unauthorized: If a key is needed, and there is none or an unknown one.
        """
        keys = self.keys.get(group)
        if keys is None:
            return NOBODY
        digest = None if authorization is None else digest_of(authorization)
        if digest is None:
            raise _unauthorized(*NO_KEY)
        if digest in keys:
            return int.from_bytes(digest[:8], "big", signed=True)
        if any(digest in others for others in self.keys.values()):
            raise Forbidden("this key is for other routes; use one that is listed for this one")
        raise _unauthorized(*UNKNOWN_KEY)

    def cors_headers(self, scope: Scope) -> Headers:
        """The headers that let the page that asks read the answer; none if it may not."""
        if not self.origins or group_of(scope["path"]) is not Group.PREDICTION:
            return []
        origin = dict(scope["headers"]).get(b"origin")
        vary = [] if "*" in self.origins else [(b"vary", b"Origin")]
        if origin is None or not self._allows(origin):
            return vary
        shown = b"*" if "*" in self.origins else origin
        exposed = f"X-Request-ID, Server-Timing, Retry-After, {LENGTH_HEADER}".encode()
        return [
            (b"access-control-allow-origin", shown),
            (b"access-control-expose-headers", exposed),
            *vary,
        ]

    def preflight(self, scope: Scope) -> dict[str, str] | None:
        """The further headers that answer a browser's question whether a page may ask.

        Such a question never carries a key. None if the request is none, or the page may not.
        """
        headers = dict(scope["headers"])
        if scope["method"] != "OPTIONS" or b"access-control-request-method" not in headers:
            return None
        if b"access-control-allow-origin" not in dict(self.cors_headers(scope)):
            return None
        return {
            "access-control-allow-methods": "GET, POST",
            "access-control-allow-headers": ALLOWED_HEADERS,
            "access-control-max-age": "600",
        }

    def _allows(self, origin: bytes) -> bool:
        return "*" in self.origins or origin.decode("latin-1") in self.origins

    def _refuse_other_sites(self, headers: dict[bytes, bytes], group: Group) -> None:
        """Refuse what a page of another site makes its visitor's browser send.

        Browsers say so, and no page can keep them from it. The scheme of an origin is not
        compared, since a proxy may have taken off TLS.
        """
        site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
        if group is Group.PREDICTION and origin is not None and self._allows(origin):
            return
        if site is not None:
            foreign = site.lower() not in OWN_SITE
        elif origin is not None:
            host = origin.partition(b"://")[2].lower()  # and port; an origin has no path
            foreign = not host or host != headers.get(b"host", b"").lower()
        else:
            return
        if foreign:
            raise Forbidden("a web page of another site asks; send this from the server's own site")


class KeyFiles:
    """The files of keys that the settings name.

    Args:
        settings: The server's.

    Raises:
        ValueError: If one cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self._files = {group: KeyFile(path) for group, path in _paths(settings).items()}

    @property
    def keys(self) -> dict[Group, KeySet]:
        """The keys of each group that needs one."""
        return {group: file.keys for group, file in self._files.items()}

    def refresh(self) -> bool:
        """Read again what has changed; return whether any keys are others now."""
        return any([file.refresh() for file in self._files.values()])

    async def watch(self, on_change: Callable[[Mapping[Group, KeySet]], None]) -> None:
        """Hand over the keys whenever a file has changed; ends by cancellation."""
        while self._files:
            await asyncio.sleep(CHECK_S)
            if self.refresh():
                on_change(self.keys)


def main_gate(settings: Settings) -> Gate:
    """The gate of the main port; it takes no key until it has been given them."""
    admin_is_elsewhere = settings.admin_port is not None
    groups = frozenset(Group) - ({Group.ADMIN} if admin_is_elsewhere else set())
    keys = {group: KeySet(()) for group in _paths(settings)}
    return Gate(groups, keys, settings.cors_origin, settings.root_path)


def admin_gate(settings: Settings) -> Gate:
    """The gate of --admin-port; it takes no key until it has been given them."""
    keys = {group: KeySet(()) for group in _paths(settings)}
    return Gate(frozenset({Group.OPEN, Group.ADMIN}), keys, (), settings.root_path)


def _paths(settings: Settings) -> dict[Group, Path]:
    named = {Group.PREDICTION: settings.api_keys, Group.ADMIN: settings.admin_keys}
    return {group: path for group, path in named.items() if path is not None}


def without_root(scope: Scope, root_path: str) -> None:
    """Take the root path off a request's path: some proxies do, others leave it there.

    As often as it is there, since the router would take it off too, behind the gate.
    """
    path: str = scope["path"]
    while root_path and path.startswith(f"{root_path}/"):
        path = path.removeprefix(root_path)
    scope["path"], scope["root_path"] = path, root_path


def _unauthorized(sentence: str, challenge: str) -> ServeError:
    return Unauthorized(sentence, {"WWW-Authenticate": challenge})
