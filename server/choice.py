"""Which of the loaded models a request means."""

from collections.abc import Mapping
from typing import Protocol, TypeVar

from server.errors import InvalidContent, UnknownModel

Model = TypeVar("Model")


def get_model(models: Mapping[str, Model], name: str | None) -> Model:
    """Return the model of a name; without a name, the only model.

    Raises:
        UnknownModel: If no model of that name is loaded.
        InvalidContent: If the request names none and there are several.
    """
    loaded = ", ".join(sorted(models))
    if name is None:
        if len(models) > 1:
            raise InvalidContent(f"several models are loaded; name one of {loaded} as model")
        return next(iter(models.values()))
    if name not in models:
        raise UnknownModel(f"no model {name!r} is loaded; name one of {loaded}")
    return models[name]


class Versioned(Protocol):
    """A model that has a version."""

    @property
    def version(self) -> str:
        """Its version."""


VersionedModel = TypeVar("VersionedModel", bound=Versioned)


def get_version(
    models: Mapping[str, VersionedModel], name: str, version: str | None
) -> VersionedModel:
    """Return a version of a model; without a version, the one that is served.

    Raises:
        UnknownModel: If no such model, or not this version of it, is loaded.
    """
    model = get_model(models, name)
    if version is not None and version != model.version:
        raise UnknownModel(
            f"no version {version!r:.40} of {name} is loaded; loaded is {model.version}"
        )
    return model


def select_models(models: Mapping[str, Model], name: str | None) -> list[Model]:
    """Return the model of a name; without a name, all models.

    Raises:
        UnknownModel: If none is loaded under the name.
    """
    return list(models.values()) if name is None else [get_model(models, name)]
