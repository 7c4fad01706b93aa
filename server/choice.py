"""The models that are served, and which of them a request means."""

import re
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from server.errors import InvalidContent, UnknownModel

NONE_LOADED = "no model is loaded; load one with POST /v2/repository/models/NAME/load"


class Served(Protocol):
    """One version of a model."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def version(self) -> str:
        """The version."""


Model = TypeVar("Model", bound=Served)


class ModelTable(Generic[Model]):
    """The models that are served; of one name there may be several versions.

    Requests name a model as `NAME`, which means its latest version, or as `NAME@VERSION`.

    Args:
        models: Those to begin with.
    """

    def __init__(self, models: Iterable[Model] = ()) -> None:
        self._models = list(models)

    def add(self, model: Model) -> None:
        """Serve a model, in place of one of the same name and version."""
        same = (model.name, model.version)
        self._models = [m for m in self._models if (m.name, m.version) != same] + [model]

    def remove(self, model: Model) -> None:
        """Serve a model no more; nothing happens if it is not served."""
        self._models = [each for each in self._models if each is not model]

    def values(self) -> list[Model]:
        """Return all, in the order in which they were added."""
        return list(self._models)

    def versions(self, name: str) -> list[Model]:
        """Return the versions of a name, the latest last; none if it is not served."""
        found = [model for model in self._models if model.name == name]
        return sorted(found, key=lambda model: version_order(model.version))

    def latest(self) -> list[Model]:
        """Return the latest version of each name."""
        return [self.versions(name)[-1] for name in dict.fromkeys(m.name for m in self._models)]

    def names(self) -> str:
        """Return the names for a sentence, with the versions where there are several."""
        shown = []
        for name in sorted({model.name for model in self._models}):
            versions = [model.version for model in self.versions(name)]
            shown.append(name if len(versions) == 1 else f"{name} ({' '.join(versions)})")
        return ", ".join(shown)

    def find(self, name: str, version: str | None = None) -> Model:
        """Return the model that a request names.

        Args:
            name: `NAME` or `NAME@VERSION`.
            version: The version; None: that of the name, or else the latest.

        Raises:
            UnknownModel: If it is not served.
            InvalidContent: If the name holds another version than the one given.
        """
        name, version = split_version(name, version)
        versions = self.versions(name)
        if not versions:
            raise UnknownModel(self._unknown(name))
        if version is None:
            return versions[-1]
        for model in versions:
            if model.version == version:
                return model
        loaded = ", ".join(model.version for model in versions)
        raise UnknownModel(
            f"model {name!r} has no version {version!r:.80} loaded; name one of {loaded}"
        )

    def __getitem__(self, name: str) -> Model:
        return self.find(name)

    def __iter__(self) -> Iterator[Model]:
        return iter(self.values())

    def __len__(self) -> int:
        return len(self._models)

    def _unknown(self, name: str) -> str:
        if not self._models:
            return NONE_LOADED
        return f"no model {name!r:.80} is loaded; name one of {self.names()}"


def split_version(name: str, version: str | None) -> tuple[str, str | None]:
    """Return name and version of a model that a request names as `NAME` or `NAME@VERSION`.

    Raises:
        InvalidContent: If the name holds another version than the one given.
    """
    name, sign, named = name.partition("@")  # the sign is in no model's name
    if not sign:
        return name, version
    if version not in (None, named):
        raise InvalidContent(
            f"model names version {named!r:.80} and version is {version!r:.80}; give one of them"
        )
    return name, named


def version_order(version: str) -> list[tuple[int, int, str]]:
    """Return the key that sorts versions: 10 after 9, and 1.10 after 1.9."""
    parts = re.findall(r"\d+|\D+", version)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def get_model(models: ModelTable[Model], name: str | None) -> Model:
    """Return the model of a name; without a name, the only model.

    Raises:
        UnknownModel: If no such model is loaded.
        InvalidContent: If the request names none and there are several.
    """
    if name is not None:
        return models.find(name)
    latest = models.latest()
    if not latest:
        raise UnknownModel(NONE_LOADED)
    if len(latest) > 1:
        raise InvalidContent(f"several models are loaded; name one of {models.names()} as model")
    return latest[0]


def select_models(models: ModelTable[Model], name: str | None) -> list[Model]:
    """Return all versions of a name, or the version that it names; without a name, all models.

    Raises:
        UnknownModel: If none is loaded under the name.
    """
    if name is None:
        return models.values()
    one = models.find(name)
    return [one] if "@" in name else models.versions(one.name)
