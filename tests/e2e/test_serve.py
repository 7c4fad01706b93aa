"""The real server as a process, real images over HTTP, a budget that moves."""

from __future__ import annotations

import base64
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import load_bundle
from scheduler.fitted import load_scheduler
from tests.bundles import offline_log_probs
from tests.e2e.conftest import served_precision

if TYPE_CHECKING:
    from tests.conftest import Images
    from tests.e2e.conftest import Server

pytestmark = pytest.mark.e2e
WINDOW = 200
JPEG = {"content-type": "image/jpeg"}


class Round(NamedTuple):
    """What sending images once brought: exits taken, share right, rows run by each stage."""

    exits: list[int]
    accuracy: float
    stage_rows: list[float]


@pytest.fixture(scope="module")
def server(
    start_server: Callable[..., AbstractContextManager[Server]], shipped_bundle: Path
) -> Iterator[Server]:
    with start_server("--bundle", str(shipped_bundle), "--window", str(WINDOW)) as server:
        yield server


def stage_rows(client: httpx.Client) -> list[float]:
    """Rows that each stage has run so far, as the server counts them."""
    found = re.findall(r'eenet_batch_size_sum{.*stage="(\d)"} (\S+)', client.get("/metrics").text)
    return [float(rows) for _, rows in sorted(found)]


def depths(client: httpx.Client) -> list[float]:
    found = re.findall(r"eenet_queue_depth{.*} (\S+)", client.get("/metrics").text)
    return [float(rows) for rows in found]


def send(client: httpx.Client, images: Images, count: int = 300) -> Round:
    before, exits, right = stage_rows(client), [], 0
    for file, label in zip(images.files[:count], images.labels[:count], strict=True):
        answer = client.post("/predict", content=file, headers=JPEG)
        assert answer.status_code == 200, answer.text
        exits.append(answer.json()["exit"])
        right += answer.json()["class_id"] == label
    rows = [a - b for a, b in zip(stage_rows(client), before, strict=True)]
    return Round(exits, right / count, rows)


def budget(client: httpx.Client) -> dict:
    return client.get("/budget").json()["models"][0]


def settle(client: httpx.Client, images: Images, share: float) -> dict:
    """Set a budget between floor and ceiling, and send until the window's mean is under it.

    A host that changes its speed moves both ends, so each round sets the budget anew.
    """
    for _ in range(9):
        shown = budget(client)
        floor, ceiling = shown["floor_ms"], shown["ceiling_ms"]
        client.put("/budget", json={"budget_ms": floor + share * (ceiling - floor)})
        send(client, images)
        shown = budget(client)
        if shown["rolling_latency_ms"] <= shown["budget_ms"]:
            return shown
    raise AssertionError(f"the rolling latency does not settle under the budget: {shown}")


def test_it_is_ready_soon(server: Server) -> None:
    assert server.ready_after_s < 5


def test_accuracy_without_a_budget_is_that_of_the_graphs(
    server: Server, images: Images, shipped_bundle: Path
) -> None:
    server.client.put("/budget", json={"budget_ms": None, "max_disagreement": 0})
    got = send(server.client, images)
    assert got.exits == [2] * 300
    offline = offline_classes(server, images, shipped_bundle)[-1]
    assert got.accuracy == pytest.approx(np.mean(offline == images.labels))


def offline_classes(server: Server, images: Images, bundle: Path) -> NDArray[np.intp]:
    """The answers of every exit to all images, (K, 300), without the server."""
    variant = load_bundle(bundle).variant(served_precision(server.client, "cifar10-resnet56"))
    combiner = load_scheduler(variant.scheduler()).combiner
    combined = combiner.combine_all(offline_log_probs(variant, images.files))
    classes: NDArray[np.intp] = combined.argmax(-1)
    return classes


def test_the_budget_moves_exits_latency_and_work(server: Server, images: Images) -> None:
    client = server.client
    # However slow the host is meanwhile, this budget binds nobody.
    client.put("/budget", json={"budget_ms": 1e6})
    send(client, images)
    loose = budget(client)
    loose_round = send(client, images)
    tight = settle(client, images, 0.2)
    tight_round = send(client, images)

    assert np.mean(tight_round.exits) < np.mean(loose_round.exits)
    assert tight["exit_rates"][0] > loose["exit_rates"][0]
    assert loose_round.stage_rows[0] == tight_round.stage_rows[0] == 300
    assert tight_round.stage_rows[1] < loose_round.stage_rows[1]
    assert tight_round.stage_rows[2] < loose_round.stage_rows[2]
    for each in (loose_round, tight_round):  # what a stage did not have to do was not done
        exits = np.array(each.exits)
        assert each.stage_rows == [300, (exits > 0).sum(), (exits > 1).sum()]


def test_answers_under_a_budget_are_those_of_the_graphs(
    server: Server, images: Images, shipped_bundle: Path
) -> None:
    answers = [
        server.client.post("/predict", content=file, headers=JPEG).json() for file in images.files
    ]
    exits = [answer["exit"] for answer in answers]
    replayed = offline_classes(server, images, shipped_bundle)[exits, range(300)]
    assert [answer["class_id"] for answer in answers] == replayed.tolist()


def test_requests_of_every_kind_share_a_connection(server: Server, images: Images) -> None:
    server.client.put("/budget", json={"budget_ms": None, "max_disagreement": 0})
    encoded = base64.b64encode(images.files[0]).decode()
    expected = server.client.post("/predict", content=images.files[0], headers=JPEG).json()
    requests = [
        ({"content": images.files[0], "headers": JPEG}, 200),
        ({"json": {"image": encoded}}, 200),
        ({"json": {"images": [encoded]}}, 200),
        ({"content": b"no image", "headers": JPEG}, 422),
        ({"json": {"image": encoded, "top_k": 0}}, 422),
        ({"json": {"text": "there is no text model"}}, 404),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400),
        ({"content": images.files[0], "headers": JPEG, "params": {"top_k": 1}}, 200),
        ({"json": {"image": encoded, "top_k": 2, "trace": True}}, 200),
        ({"content": images.files[0], "headers": {"content-type": "image/x; q=1"}}, 200),
        ({"content": images.files[0], "headers": {"content-type": "text/plain"}}, 415),
        ({"files": {"file": images.files[0]}}, 200),
    ]
    with httpx.Client(base_url=server.client.base_url) as client:
        for place in np.random.default_rng(0).integers(0, len(requests), 100).tolist():
            request, status = requests[place]
            request_id = f"kind-{place}"
            headers = {**request.get("headers", {}), "x-request-id": request_id}  # type: ignore[dict-item]
            answer = client.post("/predict", **{**request, "headers": headers})  # type: ignore[arg-type]
            assert answer.status_code == status, (place, answer.text)
            assert answer.headers["x-request-id"] == request_id
            assert "total;dur=" in answer.headers["server-timing"]
            if status == 200:
                told = answer.json()
                (told,) = told.get("predictions", [told])
                assert told["class_id"] == expected["class_id"]
                assert told["confidence"] == pytest.approx(expected["confidence"], abs=1e-3)


def test_it_stays_small(server: Server) -> None:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    peak_kib = int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]
    assert peak_kib < 300 * 1024


def test_it_imports_neither_torch_nor_transformers(server: Server) -> None:
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "onnxruntime" in maps
    assert "libtorch" not in maps
    code = (
        "import sys; sys.argv = ['eenet', '--version']; import server.cli.main, server.app\n"
        "try: server.cli.main.main(['--version'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'onnx', 'sklearn'} & set(sys.modules)))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert printed.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_it_answers_what_it_has_and_ends_on_sigterm(server: Server, images: Images) -> None:
    base = server.client.base_url
    with ThreadPoolExecutor(8) as pool, socket.create_connection((base.host, base.port)) as half:
        half.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n")
        half.sendall(b"Content-Length: 5000\r\n\r\nabc")
        body = base64.b64encode(images.files[0]).decode()
        lists = [
            pool.submit(server.client.post, "/predict", json={"images": [body] * 50})
            for _ in range(4)
        ]
        while not any(rows > 0 for rows in depths(server.client)):
            assert not all(each.done() for each in lists), "the lists were over too soon"
        server.process.send_signal(signal.SIGTERM)
        assert [each.result().status_code for each in lists] == [200] * 4
        # The half-sent request is told so in the end, and does not hold the process for ever.
        half.settimeout(15)
        assert half.recv(4096).startswith(b"HTTP/1.1 503")
        assert server.process.wait(timeout=10) == 0
