"""The classifier behind BentoML."""

from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType
from classifier import classifier

WORKERS = 2


@bentoml.service(
    workers=WORKERS,
    logging={"access": {"enabled": False}},
    traffic={"timeout": 60},
)
class Classify:
    """Classifies bytes."""

    def __init__(self) -> None:
        self._classify = classifier()

    @bentoml.api
    def predict(self, body: Annotated[bytes, ContentType("*/*")], /) -> dict[str, Any]:
        """Classify one request."""
        return {"class_id": self._classify(body)}
