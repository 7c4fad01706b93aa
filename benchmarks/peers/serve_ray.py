"""The classifier behind Ray Serve."""

import os
import signal
from typing import Any

import ray
from classifier import classifier
from ray import serve
from starlette.requests import Request

WORKERS = 2


class Classify:
    """Classifies bytes."""

    def __init__(self) -> None:
        self._classify = classifier()

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Classify one request."""
        return {"class_id": self._classify(await request.body())}


if __name__ == "__main__":
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["BENCH_PORT"])})
    deploy = serve.deployment(
        num_replicas=WORKERS,
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=32,
        logging_config={"enable_access_log": False},
    )
    serve.run(deploy(Classify).bind(), route_prefix="/predict")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
