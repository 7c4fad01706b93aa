"""JSON bodies as models, and what is wrong with them in one sentence."""

from typing import TypeVar

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
        if error.errors(include_input=False)[0]["type"] == "json_invalid":
            raise MalformedRequest(f"the body is not JSON: {first_error(error)}") from error
        raise InvalidContent(first_error(error)) from error


def first_error(error: ValidationError) -> str:
    """The first thing pydantic found, as one sentence."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if not where or not isinstance(first["input"], str | int | float | None):
        return f"{where}: {message}" if where else message
    return f"{where}: {message}, got {str(first['input'])[:80]!r}"
