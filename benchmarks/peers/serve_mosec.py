"""The classifier behind mosec."""

from typing import Any

from classifier import Unreadable, classifier
from mosec import Server, ValidationError, Worker

WORKERS = 2


class Classify(Worker):
    """Classifies bytes in one stage: passing data between stages costs a copy."""

    def __init__(self) -> None:
        super().__init__()
        self._classify = classifier()

    def deserialize(self, data: bytes) -> bytes:
        """Return the body unchanged."""
        return data

    def forward(self, data: bytes) -> dict[str, Any]:
        """Classify one request: without batching mosec passes them one by one."""
        try:
            return {"class_id": self._classify(data)}
        except Unreadable as error:
            raise ValidationError(str(error)) from error


if __name__ == "__main__":
    server = Server()
    server.append_worker(Classify, num=WORKERS)
    server.run()
