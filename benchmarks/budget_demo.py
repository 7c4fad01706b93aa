"""What a change of the budget does: sends this repository's test images to a running server."""

import itertools
import json
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

IMAGES = Path(__file__).parent.parent / "tests/data/cifar10_test_300.npz"
MODEL = "cifar10-resnet56"
ROUNDS = 5


def ask(method: str, url: str, body: bytes | None = None, kind: str = "application/json") -> Any:
    """One request; its JSON answer."""
    request = urllib.request.Request(url, body, {"Content-Type": kind}, method=method)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def main(url: str, budgets_ms: list[float | None]) -> None:
    """Set each budget, send all images `ROUNDS` times, print what the server then says."""
    with np.load(IMAGES) as arrays:
        blob, off, labels = arrays["blob"].tobytes(), arrays["off"].tolist(), arrays["y"].tolist()
    files = [blob[a:b] for a, b in itertools.pairwise(off)]
    rng = np.random.default_rng(0)  # they lie sorted by class, which no traffic is
    for budget_ms in budgets_ms:
        ask("PUT", f"{url}/budget?model={MODEL}", json.dumps({"budget_ms": budget_ms}).encode())
        started, right = time.perf_counter(), 0
        for row in np.concatenate([rng.permutation(len(files)) for _ in range(ROUNDS)]).tolist():
            answer = ask("POST", f"{url}/predict", files[row], "image/jpeg")
            right += answer["class_id"] == labels[row]
        count = len(files) * ROUNDS
        rate = count / (time.perf_counter() - started)
        state = ask("GET", f"{url}/budget?model={MODEL}")["models"][0]
        shown = {key: state[key] for key in ("rolling_latency_ms", "feasible", "exit_rates")}
        print(f"budget {budget_ms} ms: accuracy {right / count:.4f}, {rate:.0f}/s, {shown}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000", [None, 2.0, 1.4, 1.0])
