"""POST /v2/repository: what there is to serve, and loading and unloading it, as Triton has it."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from server.bundle_folders import VersionPolicy, policy_of_triton
from server.control import control_of
from server.errors import InvalidContent, NotReady
from server.problems import parse_json
from server.repository import Change, Repository
from server.schemas import KnownFields, Problem

router = APIRouter(prefix="/v2/repository", tags=["repository"])

Name = Annotated[str, Path(description="name of a model, or NAME@VERSION")]
REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem} for code in (400, 401, 403, 404, 422, 503)
}


class IndexRequest(KnownFields):
    """Body of a request for the index; it may be left out."""

    model_config = ConfigDict(strict=True)

    ready: bool = Field(False, description="list only what is served")


class IndexedModel(BaseModel):
    """A version of a model; `reason` says why it is not ready."""

    name: str
    version: str
    state: str
    reason: str


class LoadRequest(KnownFields):
    """Body of a load; it may be left out."""

    model_config = ConfigDict(strict=True)

    parameters: dict[str, Any] = Field(
        {},
        description="`config`: a model configuration in JSON as Triton has it, of which "
        "`version_policy` alone is taken",
    )


class UnloadRequest(KnownFields):
    """Body of an unload; it may be left out."""

    model_config = ConfigDict(strict=True)

    parameters: dict[str, Any] = Field({}, description="`unload_dependents`: without effect")


class RepositoryChange(BaseModel):
    """The versions of a model that were loaded and unloaded."""

    name: str
    loaded: list[str]
    unloaded: list[str]


def _body(model: type[BaseModel]) -> dict[str, Any]:
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": False, "content": content}}


@router.post("/index", responses=REFUSALS, openapi_extra=_body(IndexRequest))
async def index_repository(request: Request) -> list[IndexedModel]:
    """Every version of every model that this server has loaded or could load."""
    body = await request.body()
    asked = parse_json(IndexRequest, body) if body.strip() else IndexRequest()
    entries = control_of(request).repository.index()
    return [
        IndexedModel(**entry._asdict())
        for entry in entries
        if entry.state == "READY" or not asked.ready
    ]


@router.post("/models/{model}/load", responses=REFUSALS, openapi_extra=_body(LoadRequest))
async def load_model(request: Request, model: Name) -> RepositoryChange:
    """Serve the versions of a model that its folder holds now, in place of those before."""
    body = await request.body()
    asked = parse_json(LoadRequest, body) if body.strip() else LoadRequest()
    policy = _policy(asked.parameters)
    return _shown(await _repository(request).load(model, policy))


@router.post("/models/{model}/unload", responses=REFUSALS, openapi_extra=_body(UnloadRequest))
async def unload_model(request: Request, model: Name) -> RepositoryChange:
    """Serve a model no more, once the requests that it has are answered."""
    body = await request.body()
    asked = parse_json(UnloadRequest, body) if body.strip() else UnloadRequest()
    if unknown := asked.parameters.keys() - {"unload_dependents"}:
        raise InvalidContent(f"parameters: unknown field {min(unknown)!r:.80}")
    return _shown(await _repository(request).unload(model))


def _repository(request: Request) -> Repository:
    """The repository, while it may be changed.

    Raises:
        NotReady: If the server starts or ends.
    """
    control = control_of(request)
    if control.starting or control.draining:
        raise NotReady("the server is starting or draining; load and unload while it is ready")
    return control.repository


def _policy(parameters: dict[str, Any]) -> VersionPolicy | None:
    """Return the version policy that a load asks for; None: the server's.

    Raises:
        InvalidContent: If anything else is asked for.
    """
    if any(name.startswith("file:") for name in parameters):
        raise InvalidContent(
            "parameters hold files, and models are loaded from this server's own folders alone; "
            "put a new version there"
        )
    if unknown := parameters.keys() - {"config"}:
        raise InvalidContent(
            f"parameters: unknown field {min(unknown)!r:.80}; send config, or none"
        )
    if "config" not in parameters:
        return None
    try:
        config = json.loads(parameters["config"])
        if not isinstance(config, dict) or config.keys() - {"version_policy", "name"}:
            raise ValueError("it is no object that holds version_policy alone")
        return policy_of_triton(config["version_policy"]) if "version_policy" in config else None
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidContent(f"parameters: config: {error}") from error


def _shown(change: Change) -> RepositoryChange:
    return RepositoryChange(**change._asdict())
