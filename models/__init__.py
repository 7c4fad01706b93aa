"""Multi-exit networks: datasets, training, export and runtimes."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.networks.multi_exit import MultiExitModel

__all__ = ["MultiExitModel"]


def __getattr__(name: str) -> Any:
    """Import `MultiExitModel` once it is asked for: torch takes seconds, and servers lack it."""
    if name == "MultiExitModel":
        from models.networks.multi_exit import MultiExitModel

        return MultiExitModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
