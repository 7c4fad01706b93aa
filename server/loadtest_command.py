"""`eenet loadtest`: real inputs to a running server, and what came of them."""

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import numpy as np

from models.image_folder import SUFFIXES
from models.text_table import Columns, read_texts
from profiling.lanes import LaneConfig
from profiling.loadtest import OK, Call, LoadResult, closed_loop, open_loop, poisson
from scheduler.arrays import read_arrays
from server.commands import command

IMAGES = Path(__file__).resolve().parent.parent / "tests/data/cifar10_test_300.npz"
CLOSED_CONNECTIONS, OPEN_CONNECTIONS = 32, 256
WARM_UP_S = 1.0
ASK_TIMEOUT_S = 10.0


class Inputs(NamedTuple):
    """What is sent.

    Attributes:
        bodies: N of them.
        content_type: Of every one.
        labels: The true class of each, by number or by name, (N,); None where they have none.
    """

    bodies: list[bytes]
    content_type: str
    labels: Sequence[int | str] | None


class Answers(NamedTuple):
    """What the answers with status 200 say.

    Attributes:
        models: Who answered.
        exit_rates: (K,).
        accuracy: Share of right ones; None where nothing tells what is right.
        compute_ms: In the mean.
    """

    models: list[str]
    exit_rates: list[float]
    accuracy: float | None
    compute_ms: float


def add_loadtest(commands: Any) -> None:
    """`eenet loadtest`."""
    parser = command(
        commands,
        "loadtest",
        "Load a running server with real inputs: rate, latency, exits, accuracy, budget.",
        "eenet loadtest http://127.0.0.1:8000 --rate 200 --seconds 30",
        _loadtest,
    )
    parser.add_argument("url", metavar="URL", help="of the server, http://127.0.0.1:8000")
    inputs = parser.add_mutually_exclusive_group()
    inputs.add_argument(
        "--images",
        type=Path,
        metavar="FILE.npz|FOLDER",
        help="encoded pictures as blob, off and y, or picture files, labelled by their folders "
        "(default: 300 test images of CIFAR-10, where the repository is)",
    )
    inputs.add_argument(
        "--texts", type=Path, metavar="FILE.tsv", help="a table with the columns text and label"
    )
    parser.add_argument(
        "--connections",
        type=int,
        help=f"open at a time (default: {CLOSED_CONNECTIONS}; with --rate at most "
        f"{OPEN_CONNECTIONS})",
    )
    parser.add_argument(
        "--rate",
        type=float,
        help="requests a second at random times, whatever is answered (default: each connection "
        "sends when its answer is in)",
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="how long (default: %(default)g)"
    )
    parser.add_argument("--model", help="who shall answer, if several models could")
    parser.add_argument(
        "--budget-ms", type=float, help="each request's own wish (default: the server's budget)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the random times (default: %(default)s)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the results as one JSON document last"
    )


def _loadtest(args: argparse.Namespace) -> None:
    _check(args)
    inputs = read_inputs(args.images, args.texts)
    ask_budgets(args.url, args.model)  # before the load: whether there is a server at all
    result = _send(args, inputs)
    answers = read_answers(result, inputs.labels)
    report = _report(args, result, answers, ask_budgets(args.url, args.model))
    print("\n".join(_lines(report)))
    if args.json:
        print(json.dumps(report))


def _check(args: argparse.Namespace) -> None:
    given = {
        "--connections": args.connections,
        "--rate": args.rate,
        "--seconds": args.seconds,
        "--budget-ms": args.budget_ms,
    }
    for flag, value in given.items():
        if value is not None and not 0 < value < float("inf"):  # NaN fails too
            raise ValueError(f"{flag} is {value:g}; give a number above 0")


def read_inputs(images: Path | None, texts: Path | None) -> Inputs:
    """Read what to send.

    Raises:
        ValueError: If it cannot be read or holds nothing.
    """
    if texts is not None:
        return _read_table(texts)
    if images is not None and images.is_dir():
        return _read_folder(images)
    if images is None and not IMAGES.is_file():
        raise ValueError("there are no images here to send; give --images or --texts")
    return _read_archive(images or IMAGES)


def _read_table(path: Path) -> Inputs:
    classes, texts, indices, _ = read_texts(path, Columns("text", "label"))
    bodies = [json.dumps({"text": text}).encode() for text in texts]
    are_numbers = all(name.isdecimal() for name in classes)
    labels = [int(classes[index]) if are_numbers else classes[index] for index in indices]
    return Inputs(bodies, "application/json", labels)


def _read_folder(folder: Path) -> Inputs:
    """Pictures at any depth; the folder that a picture lies in is its class."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")
    classes = [path.parent.name for path in paths]
    is_flat = any(path.parent == folder for path in paths)
    return Inputs([path.read_bytes() for path in paths], "image/jpeg", None if is_flat else classes)


def _read_archive(path: Path) -> Inputs:
    arrays = read_arrays(path, {"blob", "off", "y", "test"}.__contains__)
    if missing := {"blob", "off"} - arrays.keys():
        raise ValueError(f"{path} lacks the array {min(missing)!r}; it needs blob and off")
    blob, offsets = arrays["blob"].tobytes(), arrays["off"].tolist()
    rows = np.flatnonzero(arrays.get("test", np.ones(len(offsets) - 1))).tolist()
    if not rows or ("y" in arrays and len(arrays["y"]) != len(offsets) - 1):
        raise ValueError(f"{path} needs N+1 offsets for N pictures, and N labels where it has any")
    files = [blob[start:end] for start, end in itertools.pairwise(offsets)]
    labels = [int(arrays["y"][row]) for row in rows] if "y" in arrays else None
    # The server reads a picture's format from its bytes, whatever image type it is sent as.
    return Inputs([files[row] for row in rows], "image/jpeg", labels)


def ask_budgets(url: str, model: str | None) -> list[dict[str, Any]]:
    """GET /budget, of one model or of all.

    Raises:
        ValueError: If the server does not answer, or does not know the model.
    """
    path = "/budget" + ("" if model is None else "?" + urlencode({"model": model}))
    config = LaneConfig(1, timeout_s=ASK_TIMEOUT_S, keep_bodies=True)
    asked = closed_loop(url, [Call(path, method="GET")], config, count=1)
    if asked.bodies is None or not asked.outcome[0].isdigit():
        raise ValueError(
            f"{url} does not answer ({asked.outcome[0]}); start a server there with eenet serve"
        )
    if asked.outcome[0] != OK:
        raise ValueError(f"{url} answers {path} with {_told(asked, 0)}")
    try:
        models: list[dict[str, Any]] = json.loads(asked.bodies[0])["models"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{url} is no server of eenet serve: GET /budget is not its") from error
    return models


def _send(args: argparse.Namespace, inputs: Inputs) -> LoadResult:
    options = {"model": args.model, "budget_ms": args.budget_ms}
    query = urlencode({name: value for name, value in options.items() if value is not None})
    path = "/predict" + (f"?{query}" if query else "")
    calls = [Call(path, body, inputs.content_type) for body in inputs.bodies]
    if args.rate is None:
        config = LaneConfig(args.connections or CLOSED_CONNECTIONS, keep_bodies=True)
        warm_up_s = min(WARM_UP_S, args.seconds / 10)
        return closed_loop(args.url, calls, config, seconds=args.seconds, warm_up_s=warm_up_s)
    config = LaneConfig(args.connections or OPEN_CONNECTIONS, keep_bodies=True)
    return open_loop(args.url, calls, poisson(args.rate, args.seconds, args.seed), config)


def read_answers(result: LoadResult, labels: Sequence[int | str] | None) -> Answers:
    """Exits, right answers and times of the answers with status 200.

    Args:
        result: With bodies.
        labels: The true class of each call, by number or by name.

    Raises:
        ValueError: If there is none, or they are not the answers of `eenet serve`.
    """
    assert result.bodies is not None, "the load was asked to keep them"
    rows = np.flatnonzero(result.ok)
    if not len(rows):
        raise ValueError(f"no request was answered; the first: {_told(result, 0)}")
    try:
        said = [json.loads(result.bodies[row]) for row in rows]
        exits = [int(each["exit"]) for each in said]
        compute_ms = float(np.mean([each["latency_ms"]["compute"] for each in said]))
        num_exits = max(int(each["num_exits"]) for each in said)
        told = [(each["class_id"], each["label"]) for each in said]
        models = sorted({str(each["model"]) for each in said})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError("the answers are not those of eenet serve; give its address") from error
    rates = np.bincount(exits, minlength=num_exits) / len(exits)
    accuracy = None
    if labels is not None:
        true = [labels[call] for call in result.call[rows]]
        accuracy = float(np.mean([label in pair for label, pair in zip(true, told, strict=True)]))
    return Answers(models, rates.tolist(), accuracy, compute_ms)


def _told(result: LoadResult, row: int) -> str:
    """An outcome, with the server's own sentence where there is one."""
    assert result.bodies is not None, "the load was asked to keep them"
    try:
        sentence = json.loads(result.bodies[row])["error"]
    except (ValueError, KeyError, TypeError):
        return str(result.outcome[row])
    return f"{result.outcome[row]}: {sentence}"


def _report(
    args: argparse.Namespace,
    result: LoadResult,
    answers: Answers,
    budgets: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    shown = ("model", "budget_ms", "measure", "rolling_latency_ms", "feasible")
    percentiles = result.percentiles(50, 90, 99) or ()
    return {
        "url": args.url,
        "offered_rate": args.rate,
        "seconds": result.seconds,
        "requests": len(result.call),
        "rate": result.rate,
        "latency_ms": dict(zip(("p50", "p90", "p99"), percentiles, strict=True)),
        "outcomes": result.outcomes,
        **answers._asdict(),
        "budgets": [
            {name: each.get(name) for name in shown}
            for each in budgets
            if each.get("model") in answers.models
        ],
    }


def _lines(report: dict[str, Any]) -> list[str]:
    """For a terminal."""
    outcomes = ", ".join(f"{outcome} {count}" for outcome, count in report["outcomes"].items())
    latency = ", ".join(f"{name} {ms:.3f}" for name, ms in report["latency_ms"].items())
    rates = " ".join(f"{rate:.3f}" for rate in report["exit_rates"])
    accuracy = report["accuracy"]
    return [
        f"{report['requests']} requests in {report['seconds']:.2f} s: {report['rate']:.1f} "
        f"answers/s ({outcomes})",
        f"latency {latency} ms; compute {report['compute_ms']:.3f} ms in the mean",
        f"exit rates {rates}" + ("" if accuracy is None else f", accuracy {100 * accuracy:.2f} %"),
        *(_budget_line(each) for each in report["budgets"]),
    ]


def _budget_line(state: dict[str, Any]) -> str:
    budget_ms, rolling_ms = state["budget_ms"], state["rolling_latency_ms"]
    rolling = "no latency" if rolling_ms is None else f"{rolling_ms:.3f} ms"
    if budget_ms is None:
        return f"{state['model']}: no budget, {rolling} in the rolling mean of {state['measure']}"
    error = "" if rolling_ms is None else f" ({100 * (rolling_ms / budget_ms - 1):+.1f} %)"
    kept = "" if state["feasible"] else ", which cannot be kept"
    return (
        f"{state['model']}: budget {budget_ms:g} ms{kept}, {rolling} in the rolling mean of "
        f"{state['measure']}{error}"
    )
