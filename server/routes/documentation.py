"""GET /openapi.json, and GET /docs, a page that shows it and needs no other server."""

import asyncio
import functools
from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Request, Response

from server.errors import NotHere
from server.openapi.document import Document

router = APIRouter(include_in_schema=False)

ASSETS: Final = {
    "favicon-32x32.png": "image/png",
    "start.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
}
# Swagger UI sets styles in its elements, and its style sheet has images in it.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_SAFE: Final = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
_KEPT: Final = {**_SAFE, "Cache-Control": "public, max-age=3600"}


@router.get("/openapi.json")
async def get_document(request: Request) -> Response:
    """The OpenAPI document."""
    document: Document = request.app.state.document
    content = await asyncio.to_thread(lambda: document.content)  # the first time it takes long
    return Response(content, media_type="application/json")


@router.get("/docs")
async def show_document() -> Response:
    """A page that shows the document, and sends requests."""
    return Response(_read("index.html"), media_type="text/html", headers=_SAFE)


@router.get("/docs/assets/{name}")
async def get_asset(name: str) -> Response:
    """A file of the page."""
    if name not in ASSETS:
        raise NotHere(f"there is no /docs/assets/{name:.80}; see /docs")
    return Response(_read(name), media_type=ASSETS[name], headers=_KEPT)


@functools.cache
def _read(name: str) -> bytes:
    return files("server").joinpath("swagger_ui", name).read_bytes()
