"""The classifier behind mosec."""

from typing import Any

from classifier import classifier
from mosec import Server, Worker

WORKERS = 2


class Classify(Worker):
    """Bytes to class, all in one stage: what is handed on between stages costs a copy."""

    def __init__(self) -> None:
        super().__init__()
        self._classify = classifier()

    def deserialize(self, data: bytes) -> bytes:
        """The body as it came."""
        return data

    def forward(self, data: bytes) -> dict[str, Any]:
        """One request: without batching mosec hands them over one by one."""
        return {"class_id": self._classify(data)}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Classify, num=WORKERS)
    server.run()
