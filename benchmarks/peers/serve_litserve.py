"""The classifier behind LitServe."""

import os
from typing import Annotated, Any

import litserve
from classifier import Unreadable, classifier
from fastapi import Body, HTTPException

WORKERS = 2


class Classify(litserve.LitAPI):
    """Classifies bytes."""

    def setup(self, device: str) -> None:
        """Set up a worker."""
        self._classify = classifier()

    def decode_request(self, request: Annotated[bytes, Body(media_type="*/*")]) -> bytes:
        """Return the body unchanged."""
        return request

    def predict(self, body: bytes) -> int:
        """Classify one request: without batching LitServe passes them one by one."""
        try:
            class_id: int = self._classify(body)
        except Unreadable as error:
            raise HTTPException(422, str(error)) from error
        return class_id

    def encode_response(self, class_id: int) -> dict[str, Any]:
        """Make the JSON of a response."""
        return {"class_id": class_id}


if __name__ == "__main__":
    server = litserve.LitServer(
        Classify(), accelerator="cpu", workers_per_device=WORKERS, fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["BENCH_PORT"]),
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
