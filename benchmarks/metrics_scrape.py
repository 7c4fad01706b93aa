"""Time of GET /metrics by the number of loaded models.

    .venv/bin/python -m benchmarks.metrics_scrape [--models 1,5,20] [--scrapes 40] [--front-ends N]

The models are copies of the shipped image network, whose stages the replay backend answers at no
cost. Each model has answered images, so that no histogram is empty. Scrapes follow each other with
pauses, as those of Prometheus. The processor time is that of all processes, beats included. Ends
with status 1 if the median with the most models is above 50 ms. JSON on the last line.
"""

import json
import shutil
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np

from benchmarks.harness import (
    FREE,
    IMAGE_BUNDLE,
    Figures,
    RunningServer,
    image_files,
    make_parser,
    print_figures,
    print_report,
    serving,
    write_costs,
)
from models.bundle import MANIFEST

MOST_MS = 50.0
PAUSE_S = 0.1
IMAGES_EACH = 20


def main() -> int:
    """Measure each number of models; 1 if the bar is missed."""
    parser = make_parser(__doc__)
    parser.add_argument("--models", default="1,5,20", help="default: %(default)s")
    parser.add_argument("--scrapes", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--front-ends", type=int, default=None, help="as of eenet serve")
    args = parser.parse_args()
    counts = [2] if args.smoke else [int(each) for each in args.models.split(",")]
    scrapes = 3 if args.smoke else args.scrapes
    options = [] if args.front_ends is None else ["--front-ends", str(args.front_ends)]
    figures: Figures = {str(count): measure(count, scrapes, options) for count in counts}
    print_figures(figures)
    good = args.smoke or figures[str(max(counts))]["p50_ms"] <= MOST_MS
    print_report({"models": figures, "good": good}, smoke=args.smoke)
    return 0 if good else 1


def measure(count: int, scrapes: int, options: list[str]) -> Figures:
    """Serve so many models and scrape."""
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        names = [f"model-{number}" for number in range(count)]
        for name in names:
            copy_bundle(name, repository / name / "1")
        costs = write_costs(FREE, Path(folder))
        replay = ["--backend", "replay", "--replay-costs", str(costs), "--max-batch", "1"]
        with serving("--repository", str(repository), *replay, *options) as server:
            for name in names:
                send_images(server, name)
            before_s = server.cpu_s()
            times_ms, size = scrape(server, scrapes)
            cpu_ms = (server.cpu_s() - before_s) / scrapes * 1e3
    p50_ms, p95_ms = np.percentile(times_ms, [50, 95]).tolist()
    return {"p50_ms": p50_ms, "p95_ms": p95_ms, "cpu_ms": cpu_ms, "bytes": size}


def copy_bundle(name: str, folder: Path) -> None:
    """Copy the shipped image network under another name."""
    shutil.copytree(IMAGE_BUNDLE, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "name": name}))


def send_images(server: RunningServer, name: str) -> None:
    """Let a model answer some images."""
    for file in image_files(IMAGES_EACH):
        request = urllib.request.Request(f"{server.url}/predict?model={name}", file)
        request.add_header("Content-Type", "image/jpeg")
        urllib.request.urlopen(request, timeout=30).close()


def scrape(server: RunningServer, scrapes: int) -> tuple[list[float], int]:
    """Return the milliseconds of each scrape, and the bytes of the last."""
    times_ms, size = list[float](), 0
    for _ in range(scrapes):
        started = time.perf_counter()
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as response:
            size = len(response.read())
        times_ms.append((time.perf_counter() - started) * 1e3)
        time.sleep(PAUSE_S)
    return times_ms, size


if __name__ == "__main__":
    sys.exit(main())
