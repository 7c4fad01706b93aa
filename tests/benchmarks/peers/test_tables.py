from typing import Any

from benchmarks.peers.run import best_of
from benchmarks.peers.tables import tables
from benchmarks.peers.turns import Server


def load(rate: float) -> dict[str, float]:
    figures = dict.fromkeys(("p50_ms", "p99_ms", "rate_spread", "errors", "wrong"), 0.0)
    return figures | {"rate": rate}


def report(best: dict[str, dict[str, Any]], **rates: float) -> dict[str, Any]:
    loads = ("1 connection", "32 connections")
    task = {
        "plain_accuracy": {"float32": 0.9, "int8": 0.9},
        "least_accuracy": 0.895,
        "left_out": {"the plain network in int8": "there is none"},
        "best_peers": best,
        "ratios": {"ours": {name: 600 / peer["rate"] for name, peer in best.items()}},
        "summary": {name: dict.fromkeys(loads, load(rate)) for name, rate in rates.items()},
        "measured": [],
    }
    return {"tasks": {"image": task}, "not_installed": {}}


def test_shares_are_of_the_best_peer_of_each_precision() -> None:
    best = {"float32": {"name": "b", "rate": 300.0}, "int8": {"name": "c", "rate": 800.0}}
    lines = list(tables(report(best, a=200.0, b=300.0, c=800.0, ours=600.0)))
    assert lines[0].startswith("| image | requests/s, 32 connections | of b | of c |")
    (ours,) = [line for line in lines if line.startswith("| ours")]
    assert "| 600 (0.0 %) | 2.00 | 0.75 |" in ours
    assert "ours: 2.00 times the best float32 peer's requests/s" in lines
    assert "ours: 0.75 times the best int8 peer's requests/s" in lines
    assert "the plain network in int8 is left out: there is none" in lines


def test_without_peers_there_are_no_shares() -> None:
    lines = list(tables(report({}, ours=600.0)))
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|") == 5


def test_the_best_peer_has_the_highest_rate_of_those_that_ran() -> None:
    servers = [Server(name, None, ()) for name in ("slow", "fast", "broken")]  # type: ignore[arg-type]
    best = best_of(servers, {"slow": 1.0, "fast": 2.0, "another": 3.0})
    assert best is not None and best.name == "fast"
    assert best_of(servers, {}) is None
