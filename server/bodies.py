"""JSON bodies as models, and what is wrong with them in one sentence."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from server.errors import InvalidContent, MalformedRequest

Body = TypeVar("Body", bound=BaseModel)


def parse_json(model: type[Body], body: bytes) -> Body:
    """Read a body.

    Raises:
        MalformedRequest: If it is not JSON.
        InvalidContent: If it is not what the model takes.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise MalformedRequest(f"the body is not JSON: {sentence_of(first)}") from error
        raise InvalidContent(sentence_of(first)) from error


def first_error(error: ValidationError) -> str:
    """The first thing pydantic found, as one sentence."""
    return sentence_of(error.errors()[0])


def sentence_of(first: Mapping[str, Any]) -> str:
    """One entry of pydantic's errors, as one sentence."""
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if not where or not isinstance(first["input"], str | int | float | None):
        return f"{where}: {message}" if where else message
    return f"{where}: {message}, got {str(first['input'])[:80]!r}"
