import argparse
import http.server
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from server.loadtest_command import add_loadtest, read_inputs

STATE = {
    "model": "pets",
    "budget_ms": 2.0,
    "measure": "compute",
    "rolling_latency_ms": 1.9,
    "feasible": True,
}


class Server(http.server.ThreadingHTTPServer):
    """Answers a picture of one byte b as class b % 2 at exit b % 3, and remembers what was asked.

    Attributes:
        asked: Path and content type of every prediction.
        fails: Whether predictions are answered 429.
        budgets: The answer to GET /budget: its status and body.
    """

    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str]] = []
        self.fails = False
        self.budgets: tuple[int, Any] = (200, {"models": [STATE, {**STATE, "model": "other"}]})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        self.reply(*self.server.budgets)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers["Content-Type"]))
        if self.server.fails:
            self.reply(429, {"error": "the queue is full"})
            return
        is_text = self.headers["Content-Type"] == "application/json"
        number = len(json.loads(body)["text"]) if is_text else body[0]
        answer = {"model": "pets", "exit": number % 3, "num_exits": 4, "class_id": number % 2}
        label = ("ape", "bee")[number % 2]
        self.reply(200, {**answer, "label": label, "latency_ms": {"compute": 0.5}})

    def reply(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Six pictures of one byte, 0 to 5; every label is 1."""
    path = tmp_path / "pictures.npz"
    numbers = np.arange(6, dtype=np.uint8)
    np.savez(path, blob=numbers, off=np.arange(7), y=np.ones(6, int))
    return path


def loadtest(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    add_loadtest(parser.add_subparsers(required=True))
    args = parser.parse_args(["loadtest", *map(str, arguments)])
    args.run(args)


@pytest.fixture
def report(server: Server, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs the command against the server and gives its JSON."""

    def run(*arguments: object) -> dict[str, Any]:
        loadtest(server.url, *arguments, "--seconds", 0.2, "--json")
        report: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return report

    return run


def test_a_closed_loop_tells_rate_exits_accuracy_and_budget(
    server: Server, archive: Path, report: Callable[..., dict[str, Any]]
) -> None:
    told = report("--images", archive, "--connections", 2)
    assert told["outcomes"] == {"200": told["requests"]} and told["rate"] > 10
    assert told["latency_ms"].keys() == {"p50", "p90", "p99"}
    assert told["exit_rates"] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0], abs=0.05)
    assert told["accuracy"] == pytest.approx(0.5, abs=0.05)
    assert told["compute_ms"] == 0.5
    assert told["budgets"] == [STATE]
    assert set(server.asked) == {("/predict", "image/jpeg")}


def test_an_open_loop_keeps_its_rate_and_options_go_along(
    server: Server, archive: Path, report: Callable[..., dict[str, Any]]
) -> None:
    told = report("--images", archive, "--rate", 200, "--model", "a b", "--budget-ms", 1.5)
    assert 20 <= told["requests"] <= 60 and told["offered_rate"] == 200
    query = parse_qs(urlsplit(server.asked[0][0]).query)
    assert query == {"model": ["a b"], "budget_ms": ["1.5"]}


def test_texts_are_judged_by_number_or_by_name(
    tmp_path: Path, report: Callable[..., dict[str, Any]]
) -> None:
    table = tmp_path / "texts.tsv"
    for odd, even in (("1", "0"), ("bee", "ape")):
        table.write_text(f"label\ttext\n{odd}\tabc\n{even}\tab\n")
        assert report("--texts", table)["accuracy"] == 1.0


def test_what_is_printed_says_what_became_of_the_budget(
    server: Server, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for change, said in (
        ({}, "budget 2 ms, 1.900 ms in the rolling mean of compute (-5.0 %)"),
        ({"feasible": False}, "budget 2 ms, which cannot be kept, 1.900 ms"),
        ({"budget_ms": None}, "no budget, 1.900 ms"),
        ({"rolling_latency_ms": None}, "budget 2 ms, no latency in the rolling mean"),
    ):
        server.budgets = (200, {"models": [{**STATE, **change}]})
        loadtest(server.url, "--images", archive, "--seconds", 0.05)
        assert f"pets: {said}" in capsys.readouterr().out


def test_folders_of_pictures_are_labelled_by_their_folders(tmp_path: Path) -> None:
    for name in ("ape", "bee"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(name.encode())
    (tmp_path / "ape" / "note.txt").write_text("no picture")
    labelled = read_inputs(tmp_path, None)
    assert (labelled.bodies, labelled.labels) == ([b"ape", b"bee"], ["ape", "bee"])
    (tmp_path / "2.png").write_bytes(b"flat")
    assert read_inputs(tmp_path, None).labels is None


def test_of_a_whole_archive_the_test_pictures_are_sent(tmp_path: Path) -> None:
    path = tmp_path / "all.npz"
    blob, test = np.arange(4, dtype=np.uint8), np.array([0, 1, 0, 1], bool)
    np.savez(path, blob=blob, off=np.arange(5), y=np.arange(4), test=test)
    inputs = read_inputs(path, None)
    assert (inputs.bodies, inputs.labels) == ([b"\x01", b"\x03"], [1, 3])


def test_without_a_word_the_shipped_pictures_are_sent() -> None:
    inputs = read_inputs(None, None)
    assert len(inputs.bodies) == 300 and inputs.labels is not None
    assert all(body.startswith(b"\xff\xd8") for body in inputs.bodies)


def test_bad_arguments_and_files_are_one_sentence(tmp_path: Path, archive: Path) -> None:
    url = "http://127.0.0.1:1"
    for flag, value in itertools.product(("--seconds", "--rate", "--budget-ms"), (0, "nan", -1)):
        with pytest.raises(ValueError, match=flag):
            loadtest(url, "--images", archive, flag, value)
    with pytest.raises(ValueError, match="--connections"):
        loadtest(url, "--images", archive, "--connections", 0)
    with pytest.raises(ValueError, match="holds no pictures"):
        loadtest(url, "--images", tmp_path)
    with pytest.raises(ValueError, match="nowhere"):
        loadtest(url, "--images", tmp_path / "nowhere.npz")
    np.savez(tmp_path / "other.npz", blob=np.zeros(1))
    with pytest.raises(ValueError, match="lacks the array 'off'"):
        loadtest(url, "--images", tmp_path / "other.npz")
    np.savez(tmp_path / "short.npz", blob=np.zeros(1, np.uint8), off=np.arange(2), y=np.zeros(3))
    with pytest.raises(ValueError, match="N labels"):
        loadtest(url, "--images", tmp_path / "short.npz")


def test_a_server_that_does_not_answer_as_ours_is_one_sentence(
    server: Server, archive: Path
) -> None:
    with pytest.raises(ValueError, match="does not answer \\(refused\\)"):
        loadtest("http://127.0.0.1:1", "--images", archive)
    with pytest.raises(ValueError, match="no address"):
        loadtest("127.0.0.1", "--images", archive)
    for budgets, said in (
        ((404, {"error": "no model of that name"}), "404: no model of that name"),
        ((404, "nothing"), "with 404"),
        ((200, "nothing"), "no server of eenet serve"),
    ):
        server.budgets = budgets
        with pytest.raises(ValueError, match=said):
            loadtest(server.url, "--images", archive)
    server.budgets, server.fails = (200, {"models": []}), True
    with pytest.raises(ValueError, match="429: the queue is full"):
        loadtest(server.url, "--images", archive, "--seconds", 0.05)
