"""The description of a network family: its task, its settings and how to build it."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from models.bundle import Task

if TYPE_CHECKING:  # torch takes seconds to import
    from models.networks.multi_exit import MultiExitModel

MAX_NAMED = 5  # keys of one sort that an error message names


class Family(NamedTuple):
    """The recipe that builds a network from plain settings.

    Attributes:
        task: The task of the exits, which also decides the input: an image or a text.
        settings: Checks the settings and returns the argument of `build`; its parameters are the
            names of the settings.
        build: Builds the network, randomly initialised.
        defaults: Settings of a training that gives none.
        classes: The setting that holds C.
        exits: The setting that holds where the exits are; `--exits` fills it.
    """

    task: Task
    settings: Callable[..., Any]
    build: "Callable[[Any], MultiExitModel]"
    defaults: Mapping[str, Any] = {}
    classes: str = "num_classes"
    exits: str = "exits"


def check_count(name: str, value: object) -> None:
    """Check that a setting is a whole number above 0.

    Raises:
        ValueError: If it is not; the message names the setting.
    """
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a number above 0")


def class_count(num_classes: int) -> int:
    """Check and return `num_classes`: the settings of a family that has no others."""
    check_count("num_classes", num_classes)
    return num_classes


def check_keys(name: str, given: Mapping[str, Any], settings: Callable[..., Any]) -> None:
    """Compare given settings with the parameters of a family's `settings`.

    Raises:
        ValueError: If one is missing or unknown; the message names them.
    """
    known = inspect.signature(settings).parameters.values()
    missing = [key.name for key in known if key.default is key.empty and key.name not in given]
    unknown = sorted(given.keys() - {key.name for key in known})
    if missing or unknown:
        faults = format_items("lacks {}", missing) + format_items("has no {}", unknown)
        raise ValueError(
            f"the configuration of {name} {' and '.join(faults)}; its keys are "
            f"{', '.join(key.name for key in known)}"
        )


def format_items(sentence: str, items: Iterable[str]) -> list[str]:
    """Return the sentence with the first few items in it, or nothing if there are none."""
    every = list(items)
    more = [f"{len(every) - MAX_NAMED} more"] if len(every) > MAX_NAMED else []
    return [sentence.format(", ".join(every[:MAX_NAMED] + more))] if every else []
