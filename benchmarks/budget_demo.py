"""Effect of a change of the budget: accuracy, throughput and exits of the shipped images.

    .venv/bin/python -m benchmarks.budget_demo [--url http://127.0.0.1:8000]

Without `--url` it starts a server of its own. Sends the test images of this repository one after
the other under each budget. JSON on the last line.
"""

import json
import time
import urllib.request
from contextlib import nullcontext

import numpy as np

from benchmarks.harness import (
    IMAGE_BUNDLE,
    IMAGES,
    Figures,
    RunningServer,
    ask,
    image_files,
    make_parser,
    print_report,
    serving,
)

MODEL = "cifar10-resnet56"
BUDGETS_MS = (None, 2.0, 1.4, 1.0)
ROUNDS = 5


def main() -> None:
    """Set each budget, send all images some times, print the server's state."""
    parser = make_parser(__doc__)
    parser.add_argument("--url", help="of a running server (default: start one)")
    args = parser.parse_args()
    running = nullcontext(RunningServer(args.url, 0)) if args.url else None
    with running or serving("--bundle", str(IMAGE_BUNDLE)) as server:
        rows = [
            under_budget(server.url, budget_ms, 60 if args.smoke else None)
            for budget_ms in BUDGETS_MS
        ]
    print_report({"budgets": rows}, smoke=args.smoke)


def under_budget(url: str, budget_ms: float | None, count: int | None) -> Figures:
    """Send images under a budget; report accuracy, rate and the state of the budget."""
    change = {"budget_ms": budget_ms, "max_disagreement": 0}
    ask(f"{url}/budget?model={MODEL}", json.dumps(change).encode())
    files = image_files()
    with np.load(IMAGES, allow_pickle=False) as arrays:
        labels = arrays["y"].tolist()
    rng = np.random.default_rng(0)  # the file is sorted by class, which no traffic is
    rows = np.concatenate([rng.permutation(len(files)) for _ in range(ROUNDS)])[:count].tolist()
    started, correct = time.perf_counter(), 0
    for row in rows:
        correct += classify(url, files[row]) == labels[row]
    rate = len(rows) / (time.perf_counter() - started)
    state = ask(f"{url}/budget?model={MODEL}")["models"][0]
    shown = {key: state[key] for key in ("rolling_latency_ms", "feasible", "exit_rates")}
    print(f"budget {budget_ms} ms: accuracy {correct / len(rows):.4f}, {rate:.0f}/s, {shown}")
    return {"budget_ms": budget_ms, "accuracy": correct / len(rows), "rate": rate, **shown}


def classify(url: str, file: bytes) -> int:
    """Ask the server for the class of an image."""
    headers = {"Content-Type": "image/jpeg"}
    request = urllib.request.Request(f"{url}/predict?model={MODEL}", file, headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        class_id: int = json.load(response)["class_id"]
        return class_id


if __name__ == "__main__":
    main()
