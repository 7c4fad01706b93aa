"""The OpenAPI document of the server, as it is sent."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, Final

import pydantic_core
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter
from starlette.routing import BaseRoute

from server import __version__
from server.gate import Group, group_of
from server.openapi.errors import (
    EVERY_ANSWER,
    HEADERS,
    REF,
    error_components,
    error_responses,
    header_refs,
)
from server.openapi.operations import JSON, OPERATIONS, PATH_EXAMPLES, Operation
from server.schemas import Options, Problem
from server.settings import Settings

SCHEMAS: Final = "#/components/schemas/"
DEFINITIONS: Final = "#/$defs/"
FROM_FASTAPI: Final = ("HTTPValidationError", "ValidationError")  # which no route answers with
TITLE, SUMMARY = "EENet Serve", "Multi-exit networks under a latency budget"
DESCRIPTION: Final = (
    "Errors are `application/problem+json` (RFC 9457), with the sentence under `detail` and under "
    "`error`. Every route that has GET has HEAD too; another method is a 405. `/health`, "
    "`/healthz` and `/ping` answer as `/readyz`."
)
SCHEMES: Final = {Group.PREDICTION: "PredictionKey", Group.ADMIN: "AdminKey"}
TAGS: Final = (
    ("prediction", "Images or texts in, labels out"),
    ("budget", "The latency budget, and what each budget buys"),
    ("quality", "Agreement with the last exit, and true labels"),
    ("scheduler", "The exit policy in force"),
    ("repository", "Versions of models, loaded and unloaded while the server runs"),
    ("operations", "What is loaded, probes and metrics"),
    ("other protocols", "The shapes of KServe's first protocol and of vLLM"),
    ("Open Inference Protocol", "The second version of KServe's protocol, which Triton speaks"),
)


class Document:
    """The document of one app, made when it is first asked for.

    Args:
        routes: The app's.
        settings: The server's.
    """

    def __init__(self, routes: Sequence[BaseRoute], settings: Settings) -> None:
        self._routes, self._settings = routes, settings

    @functools.cached_property
    def content(self) -> bytes:
        """The document in JSON; equal settings give equal bytes."""
        return pydantic_core.to_json(build_document(self._routes, self._settings))


def build_document(routes: Sequence[BaseRoute], settings: Settings) -> dict[str, Any]:
    """Describe the routes of a server.

    Args:
        routes: Those of its app.
        settings: Say which keys are needed, and the root path.
    """
    document: dict[str, Any] = get_openapi(
        title=TITLE,
        version=__version__,
        summary=SUMMARY,
        description=DESCRIPTION,
        routes=routes,
        tags=[{"name": name, "description": text} for name, text in TAGS],
        servers=[{"url": settings.root_path or "/"}],
        separate_input_output_schemas=False,
    )
    schemas = _Schemas(document["components"]["schemas"])
    keyed = _keyed_groups(settings)
    for path, item in document["paths"].items():
        for method, operation in item.items():
            _describe(operation, path, method, schemas)
            group = group_of(path)
            if group in keyed:
                operation["security"] = [{SCHEMES[group]: []}]
    schemas.add(Problem)
    document["components"] = {
        "schemas": schemas.sorted(),
        "responses": error_components(),
        "headers": HEADERS,
    }
    if keyed:
        document["components"]["securitySchemes"] = {
            SCHEMES[group]: {
                "type": "http",
                "scheme": "bearer",
                "description": f"Of {group} routes",
            }
            for group in keyed
        }
    return document


def _keyed_groups(settings: Settings) -> list[Group]:
    """The groups of routes that need a key."""
    files = {Group.PREDICTION: settings.api_keys, Group.ADMIN: settings.admin_keys}
    return [group for group, file in files.items() if file is not None]


class _Schemas:
    """The schemas of the document's components; nested definitions become components too."""

    def __init__(self, found: dict[str, Any]) -> None:
        self._found = {name: each for name, each in found.items() if name not in FROM_FASTAPI}

    def add(self, kind: Any) -> dict[str, Any]:
        """Add a type's schema; return a reference to it, or the schema if it has no name."""
        return self.hoist(TypeAdapter(kind).json_schema())

    def hoist(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Move a schema and its definitions to the components; return what refers to it."""
        schema = _moved(schema)
        for name, each in schema.pop("$defs", {}).items():
            self._found[name] = each
        if schema.get("type") != "object" or "title" not in schema or "properties" not in schema:
            return schema
        self._found[schema["title"]] = schema
        return {REF: SCHEMAS + schema["title"]}

    def sorted(self) -> dict[str, Any]:
        """Return the schemas by name."""
        return dict(sorted(self._found.items()))


def _moved(schema: Any) -> Any:
    """A schema whose references point to the components."""
    if isinstance(schema, list):
        return [_moved(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {name: _moved(each) for name, each in schema.items()}
    if isinstance(moved.get(REF), str):
        moved[REF] = moved[REF].replace(DEFINITIONS, SCHEMAS)
    return moved


def _describe(operation: dict[str, Any], path: str, method: str, schemas: _Schemas) -> None:
    """Complete one operation."""
    known = OPERATIONS.get((method, path), Operation())
    operation["operationId"] = known.id or _function_name(operation, path, method)
    operation["summary"] = operation["description"].partition("\n")[0].removesuffix(".")
    operation["parameters"] = [*operation.get("parameters", ()), *_query(known.options)]
    for parameter in operation["parameters"]:
        name = parameter["name"]
        if parameter["in"] == "path":
            parameter["example"] = PATH_EXAMPLES[name]
        elif name in known.query:
            parameter["example"] = known.query[name]
    _describe_body(operation, known, schemas)
    done = {status: each for status, each in operation["responses"].items() if status < "300"}
    for response in done.values():
        _describe_answer(response, known, schemas)
    operation["responses"] = done | error_responses(path, method)


def _function_name(operation: dict[str, Any], path: str, method: str) -> str:
    """The name of an operation's function; FastAPI adds path and method to it."""
    characters = "".join([each if each.isalnum() else "_" for each in path])
    name: str = operation["operationId"].removesuffix(f"{characters}_{method}")
    return name


def _query(names: Iterable[str]) -> list[dict[str, Any]]:
    """Options as parameters of a query."""
    schemas = Options.model_json_schema()["properties"]
    return [{"name": name, "in": "query", "schema": schemas[name]} for name in names]


def _describe_body(operation: dict[str, Any], known: Operation, schemas: _Schemas) -> None:
    content = operation.get("requestBody", {}).get("content", {})
    if JSON not in content:
        return
    given = content[JSON]
    given["schema"] = (
        schemas.hoist(given["schema"]) if known.body is None else schemas.add(known.body)
    )
    if known.examples:
        given["examples"] = {
            summary.replace(" ", "-"): {"summary": summary, "value": value}
            for summary, value in known.examples.items()
        }
    if known.form is not None:
        content["multipart/form-data"]["example"] = known.form


def _describe_answer(response: dict[str, Any], known: Operation, schemas: _Schemas) -> None:
    content = response.get("content", {})
    if known.answer is not None:
        content[JSON] = {"schema": schemas.add(known.answer)}
    elif known.media:
        content.pop(JSON, None)
    for media_type, value in known.media.items():
        content[media_type] = {**content.get(media_type, {}), **value}
    response["content"] = content
    response["headers"] = header_refs(*EVERY_ANSWER)
