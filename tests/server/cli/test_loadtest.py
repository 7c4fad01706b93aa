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

from profiling.loadtest.inputs import COLUMNS, read_inputs
from profiling.loadtest.log import load_log
from profiling.loadtest.plan import read_plan
from server.cli.loadtest import measure_capacity
from server.cli.loadtest import run as run_loadtest
from server.cli.main import build_parser, main

STATE = {
    "model": "pets",
    "budget_ms": 2.0,
    "measure": "compute",
    "rolling_latency_ms": 1.9,
    "feasible": True,
    "promise": "budget",
    "summary": None,
    "reason": None,
}
LATENCY = {"total": 0.9, "queue": 0.1, "decode": 0.2, "compute": 0.5}


class Server(http.server.ThreadingHTTPServer):
    """Answers an image of one byte b as class b % 2 at exit b % 3, and remembers what was asked.

    Attributes:
        asked: Path and content type of every prediction.
        fails: Whether predictions are answered with `failure`.
        failure: A refusal, 429 at first: its status and body.
        refuses: Every how many predictions one is refused; None: none.
        budgets: The answer to GET /budget: its status and body.
        put: Path and body of every PUT; one of 666 ms is refused.
        keys: The methods and keys of all requests.
    """

    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str]] = []
        self.fails = False
        self.failure: tuple[int, dict[str, str]] = (429, {"error": "the queue is full"})
        self.refuses: int | None = None
        self.put: list[tuple[str, Any]] = []
        self.keys: set[tuple[str, str | None]] = set()
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

    def do_PUT(self) -> None:
        change = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.put.append((self.path, change))
        if change["budget_ms"] == 666:
            self.reply(422, {"error": "666 ms is too much"})
            return
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers["Content-Type"]))
        refuses = self.server.refuses
        if self.server.fails or (refuses and len(self.server.asked) % refuses == 0):
            self.reply(*self.server.failure)
            return
        is_text = self.headers["Content-Type"] == "application/json"
        number = len(json.loads(body)["text"]) if is_text else body[0]
        answer = {"model": "pets", "exit": number % 3, "num_exits": 4, "class_id": number % 2}
        label = ("ape", "bee")[number % 2]
        self.reply(200, {**answer, "label": label, "latency_ms": LATENCY})

    def reply(self, status: int, content: Any) -> None:
        self.server.keys.add((self.command, self.headers["Authorization"]))
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
    """Six images of one byte, 0 to 5; every label is 1."""
    path = tmp_path / "images.npz"
    numbers = np.arange(6, dtype=np.uint8)
    np.savez(path, blob=numbers, off=np.arange(7), y=np.ones(6, int))
    return path


def loadtest(*arguments: object) -> None:
    run_loadtest(build_parser().parse_args(["loadtest", *map(str, arguments)]))


@pytest.fixture
def report(server: Server, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs the command against the server and gives its JSON."""

    def run(*arguments: object) -> dict[str, Any]:
        given = map(str, (server.url, *arguments, "--seconds", 0.2, "--json"))
        assert main(["loadtest", *given]) == 0
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
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
        ({"summary": "at most 1 % of the samples"}, "at most 1 % of the samples"),
        ({"reason": "the promise is withdrawn"}, "the promise is withdrawn"),
    ):
        server.budgets = (200, {"models": [{**STATE, **change}]})
        loadtest(server.url, "--images", archive, "--seconds", 0.05)
        assert f"pets: {said}" in capsys.readouterr().out


def test_budgets_and_forms_change_and_everything_is_logged(
    server: Server, report: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "load.npz"
    told = report(
        *("--rate", "0:100,0.1:300", "--model", "pets", "--poll-s", 0.05, "--log", path),
        *("--budgets", "0.05:2,0.1:off,0.15:666", "--phases", "0:clean,0.12:noise-5"),
    )
    assert server.put == [("/budget?model=pets", {"budget_ms": ms}) for ms in (2.0, None, 666.0)]
    assert told["budgets_not_set"] == ["422: 666 ms is too much"]
    log = load_log(path)
    assert log.measure == "compute" and log.num_exits == 4
    assert log.puts.outcome.tolist() == ["200", "200", "422"]
    assert len(log.polls.at_s) == 4 and set(log.polls.rolling_latency_ms) == {1.9}
    assert set(log.polls.feasible) == {1.0} and np.isnan(log.polls.floor_ms).all()
    samples = log.samples
    assert (np.diff(samples.due_s) >= 0).all() and len(samples.due_s) == told["requests"]
    assert (samples.form == np.where(samples.due_s >= 0.12, "noise-5", "clean")).all()
    assert set(samples.compute_ms) == {0.5} and set(samples.total_ms) == {0.9}
    off_s = log.puts.due_s[1] + log.puts.latency_ms[1] / 1e3
    assert (np.isnan(samples.budget_ms) == (samples.sent_s >= off_s)).all()
    assert set(samples.budget_ms[samples.sent_s < off_s]) == {2.0}  # it stood at 2 before, too
    assert len(set(samples.input.tolist())) == len(samples.input) and samples.input.max() < 300
    forms = [(phase["form"], phase["budget_ms"]) for phase in told["phases"]]
    assert forms == [("clean", 2.0), ("clean", 2.0), ("clean", None), ("noise-5", None)]
    assert told["phases"][0]["budget_error"] == pytest.approx(0.5 / 2 - 1)
    assert sum(phase["samples"] for phase in told["phases"]) == told["requests"]


def test_phases_are_printed_only_where_something_changes(
    server: Server, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loadtest(server.url, "--images", archive, "--seconds", 0.1)
    assert "from 0.0" not in capsys.readouterr().out
    loadtest(server.url, "--images", archive, "--seconds", 0.2, "--budgets", "0.1:1")
    assert "clean, budget 1 ms, mean 0.500 ms of compute (-50.0 %)" in capsys.readouterr().out


def test_some_classes_alone_are_sent_with_a_deadline(
    server: Server, tmp_path: Path, report: Callable[..., dict[str, Any]]
) -> None:
    path = tmp_path / "images.npz"
    numbers = np.arange(6, dtype=np.uint8)
    np.savez(path, blob=numbers, off=np.arange(7), y=np.array([0, 1, 2, 0, 1, 2]))
    told = report("--images", path, "--classes", "1,2", "--deadline-ms", 50)
    assert told["exit_rates"] == pytest.approx([0, 0.5, 0.5, 0], abs=0.05)
    assert set(server.asked) == {("/predict?deadline_ms=50.0", "image/jpeg")}


def test_the_classes_that_are_sent_change(server: Server, tmp_path: Path) -> None:
    path, log = tmp_path / "images.npz", tmp_path / "log.npz"
    numbers = np.arange(6, dtype=np.uint8)
    np.savez(path, blob=numbers, off=np.arange(7), y=np.array([0, 1, 2, 0, 1, 2]))
    flags = ("--images", path, "--log", log, "--rate", 200, "--seconds", 1)
    loadtest(server.url, *flags, "--classes", "0:all,0.3:2,0.6:0+1")
    samples = load_log(log).samples
    for begin_s, end_s, sent in (
        (0.0, 0.3, range(6)),
        (0.3, 0.6, (2, 5)),
        (0.6, 1.0, (0, 1, 3, 4)),
    ):
        chosen = (samples.due_s >= begin_s) & (samples.due_s < end_s)
        assert set(samples.input[chosen].tolist()) == set(sent)


def trace_of(tmp_path: Path, *seconds: float) -> Path:
    path = tmp_path / "trace.npz"
    np.savez(path, arrival_s=np.array(seconds))
    return path


def test_a_trace_is_sent_as_it_was_recorded(
    archive: Path, tmp_path: Path, report: Callable[..., dict[str, Any]]
) -> None:
    log = tmp_path / "log.npz"
    trace = trace_of(tmp_path, 5.0, 5.05, 5.05, 5.15, 9.0)
    told = report("--images", archive, "--trace", trace, "--log", log)
    assert load_log(log).samples.due_s == pytest.approx([0, 0.05, 0.05, 0.15])
    assert told["requests"] == 4 and told["offered_rate"] == 20
    assert told["trace"] == {
        "compression": 1.0, "scale": 1.0, "exceeding": None, "capacity_per_s": None
    }  # fmt: skip
    assert told["in_time"] == []


def test_a_trace_is_compressed_and_scaled_to_the_capacity(
    server: Server, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = trace_of(tmp_path, *np.random.default_rng(0).uniform(size=200).cumsum())
    flags = ("--images", archive, "--trace", trace, "--exceeding", 0.5, "--seconds", 2)
    loadtest(server.url, *flags, "--capacity", 40, "--deadline-ms", 500)
    out = capsys.readouterr().out
    assert "50.0% of the seconds exceed 40.0 requests/s" in out
    assert "of all requests 100.00% within 500 ms; " in out
    assert 50 < len(server.asked) < 120


def test_the_capacity_is_measured_at_full_depth(
    server: Server, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.cli.loadtest.CAPACITY_S", 0.2)
    monkeypatch.setattr("server.cli.loadtest.WARM_UP_S", 0.05)
    plan = read_plan(
        build_parser().parse_args(
            ["loadtest", server.url, "--images", str(archive), "--model", "pets"]
        ),
        read_inputs(archive, None, COLUMNS),
    )
    assert measure_capacity(server.url, plan) > 10
    queries = {urlsplit(path).query for path, _ in server.asked}
    assert queries == {"budget_ms=1000000.0&model=pets"}
    server.fails = True
    with pytest.raises(ValueError, match="429: the queue is full"):
        measure_capacity(server.url, plan)


def test_a_request_without_an_answer_is_late_and_wrong(
    server: Server, archive: Path, report: Callable[..., dict[str, Any]]
) -> None:
    server.refuses = 3
    told = report("--images", archive, "--rate", 100, "--slo-ms", "0.0001,5000")
    assert 0.2 < told["outcomes"]["429"] / told["requests"] < 0.45
    never, later = told["in_time"]
    assert never == {"slo_ms": 0.0001, "share": 0.0}
    assert later["share"] == pytest.approx(told["outcomes"]["200"] / told["requests"])
    assert told["accuracy_of_all"] == pytest.approx(told["accuracy"] * later["share"])


def test_bad_traces_are_one_sentence(tmp_path: Path, archive: Path) -> None:
    good, falling = trace_of(tmp_path, 0, 1, 2), tmp_path / "falling"
    falling.write_text("1\n3\n2\n")
    np.savez(tmp_path / "other.npz", arrivals=np.zeros(3))
    log = tmp_path / "log.npz"
    for flags, said in (
        (("--trace", falling), "falling: time 3 comes before"),
        (("--trace", tmp_path / "other.npz"), "has no array arrival_s"),
        (("--trace", tmp_path / "gone"), "gone is no trace"),
        (("--trace", good, "--exceeding", 0.05), "5% of 10 s .* at least 20 s long"),
        (("--trace", good, "--exceeding", 1.5), "exceeding share is 1.5"),
        (("--exceeding", 0.1), "--exceeding goes with --trace"),
        (("--trace", good, "--capacity", 5), "--capacity goes with --exceeding"),
        (("--slo-ms", "5,-1"), "--slo-ms holds -1"),
    ):
        with pytest.raises(ValueError, match=said):
            loadtest("http://127.0.0.1:1", "--images", archive, "--log", log, *flags)
    assert not log.exists()


def test_bad_steps_are_one_sentence(archive: Path) -> None:
    for flags, said in (
        (("--rate", "0:5,5:x"), "--rate is .*'x' is not a number above 0 of requests"),
        (("--rate", "1:5"), "--rate begins at 1 s"),
        (("--budgets", "0:1,20:2"), "--budgets has a change at 20 s.*raise --seconds"),
        (("--budgets", "0:none"), "--budgets is .*milliseconds, or off"),
        (("--budgets", "2", "--budget-ms", "1"), "give one"),
        (("--phases", "0:clean,1:fog-1"), "--phases is .*no form 'fog-1'"),
        (("--phases", "0:shorter-8"), "images have no form"),
        (("--classes", "7"), "no input is of the class '7'; --classes may name 1"),
        (("--classes", "0:all,1:1+7"), "no input is of the class '7'"),
        (("--classes", "1:all"), "--classes begins at 1 s"),
        (("--poll-s", "0"), "--poll-s"),
        (("--deadline-ms", "nan"), "--deadline-ms"),
        (("--log", "nowhere/log.npz"), "--log is nowhere/log.npz, whose folder"),
    ):
        with pytest.raises(ValueError, match=said):
            loadtest("http://127.0.0.1:1", "--images", archive, *flags)


def test_bad_arguments_and_files_are_one_sentence(tmp_path: Path, archive: Path) -> None:
    url = "http://127.0.0.1:1"
    for flag, value in itertools.product(("--seconds", "--rate", "--budget-ms"), (0, "nan", -1)):
        with pytest.raises(ValueError, match=flag):
            loadtest(url, "--images", archive, flag, value)
    with pytest.raises(ValueError, match="--connections"):
        loadtest(url, "--images", archive, "--connections", 0)
    with pytest.raises(ValueError, match="holds no images"):
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
    with pytest.raises(ValueError, match="is not an address"):
        loadtest("127.0.0.1", "--images", archive)
    for budgets, said in (
        ((404, {"error": "no model of that name"}), "404: no model of that name"),
        ((404, "nothing"), "with 404"),
        ((200, "nothing"), "is not a server of eenet serve"),
    ):
        server.budgets = budgets
        with pytest.raises(ValueError, match=said):
            loadtest(server.url, "--images", archive)
    server.budgets, server.fails = (200, {"models": []}), True
    with pytest.raises(ValueError, match="429: the queue is full"):
        loadtest(server.url, "--images", archive, "--seconds", 0.05)


def test_a_key_goes_along_with_every_request(
    server: Server,
    archive: Path,
    report: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report("--images", archive)
    assert server.keys == {("GET", None), ("POST", None)}
    server.keys.clear()
    (tmp_path / "key").write_text("abc123\n")
    options = ("--images", archive, "--budgets", "0:2.0", "--key-file", tmp_path / "key")
    report(*options)
    assert server.keys == {(method, "Bearer abc123") for method in ("GET", "POST", "PUT")}
    server.keys.clear()
    monkeypatch.setenv("EENET_KEY", "def456")
    report("--images", archive)
    assert server.keys == {(method, "Bearer def456") for method in ("GET", "POST")}


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "; give a key that the server knows"), (403, "; give a key of")]
)
def test_a_key_that_does_not_open_says_what_to_do(
    server: Server, archive: Path, status: int, remedy: str
) -> None:
    refused = (status, {"error": "no"})
    server.fails, server.failure = True, refused
    with pytest.raises(
        ValueError, match=f"no request was answered; the first: {status}: no{remedy}"
    ):
        loadtest(server.url, "--images", archive, "--seconds", 0.05)
    server.budgets = refused
    with pytest.raises(ValueError, match=f"answers /budget with {status}: no{remedy}"):
        loadtest(server.url, "--images", archive)
