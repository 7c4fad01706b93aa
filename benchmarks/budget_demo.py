"""What the promise and each budget buy: accuracy, throughput and exits of the shipped images.

    .venv/bin/python -m benchmarks.budget_demo [--url http://127.0.0.1:8000]

Without `--url` it starts a server of its own. Sends the test images of this repository one after
the other: to the whole network, under the promise that is the default, and under budgets spread
over what this host can do, the last of them below what it can keep. Then the budget and the promise
of before are in force again. JSON on the last line.
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
SHARES = (0.6, 0.3, -0.1)
"""Places of the budgets between the cost of exit 0 and that of the last exit."""
ROUNDS = 5


def main() -> None:
    """Make each change, send all images some times, print the server's state."""
    parser = make_parser(__doc__)
    parser.add_argument("--url", help="of a running server (default: start one)")
    args = parser.parse_args()
    running = nullcontext(RunningServer(args.url, 0)) if args.url else None
    with running or serving("--bundle", str(IMAGE_BUNDLE)) as server:
        before = state_of(server.url)
        kept = {key: before[key] for key in ("budget_ms", "max_disagreement")}
        try:
            changes = [{"budget_ms": None, "max_disagreement": share} for share in (0, 0.01)]
            changes += [{"budget_ms": budget_ms} for budget_ms in budgets_of(before)]
            rows = [under(server.url, each, 60 if args.smoke else None) for each in changes]
        finally:
            change_budget(server.url, kept)
    print_report({"budgets": rows}, smoke=args.smoke)


def budgets_of(state: Figures) -> list[float]:
    """Budgets in ms that a host of these costs is asked to keep."""
    floor_ms, ceiling_ms = state["floor_ms"], state["ceiling_ms"]
    return [round(floor_ms + share * (ceiling_ms - floor_ms), 2) for share in SHARES]


def under(url: str, change: dict[str, float | None], count: int | None) -> Figures:
    """Send images after a change of the budget; report accuracy, rate and the server's state."""
    change_budget(url, change)
    files = image_files()
    with np.load(IMAGES, allow_pickle=False) as arrays:
        labels = arrays["y"].tolist()
    rng = np.random.default_rng(0)  # the file is sorted by class, which no traffic is
    rows = np.concatenate([rng.permutation(len(files)) for _ in range(ROUNDS)])[:count].tolist()
    started, correct = time.perf_counter(), 0
    for row in rows:
        correct += classify(url, files[row]) == labels[row]
    rate = len(rows) / (time.perf_counter() - started)
    state = state_of(url)
    shown = {key: state[key] for key in ("rolling_latency_ms", "feasible", "exit_rates")}
    print(f"{json.dumps(change)}: accuracy {correct / len(rows):.4f}, {rate:.0f}/s, {shown}")
    return change | {"accuracy": correct / len(rows), "rate": rate, **shown}


def state_of(url: str) -> Figures:
    """What `GET /budget` says of the images' model."""
    state: Figures = ask(f"{url}/budget?model={MODEL}")["models"][0]
    return state


def change_budget(url: str, change: dict[str, float | None]) -> None:
    """`PUT /budget` for the images' model."""
    ask(f"{url}/budget?model={MODEL}", json.dumps(change).encode())


def classify(url: str, file: bytes) -> int:
    """Ask the server for the class of an image."""
    headers = {"Content-Type": "image/jpeg"}
    request = urllib.request.Request(f"{url}/predict?model={MODEL}", file, headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        class_id: int = json.load(response)["class_id"]
        return class_id


if __name__ == "__main__":
    main()
