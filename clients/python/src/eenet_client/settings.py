"""What both clients give to httpx."""

from typing import Any

from eenet_client.version import __version__

BROKEN_STREAM = "the stream ended before its prediction; the server may have stopped, try again"


def client_options(base_url: str, key: str | None, timeout_s: float) -> dict[str, Any]:
    """Return the options that httpx's two clients share.

    Raises:
        ValueError: If one has no meaning.
    """
    if not base_url.startswith(("http://", "https://")):
        raise ValueError(f"base_url {base_url!r} begins with neither http:// nor https://")
    if not timeout_s > 0:
        raise ValueError(f"timeout_s {timeout_s} must be above 0")
    headers = {"user-agent": f"eenet-client/{__version__}"}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    return {"base_url": base_url, "headers": headers, "timeout": timeout_s}
