"""`eenet loadtest`: sends real inputs to a running server and reports its predictions."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np

from models.data.text_table import Columns
from profiling.loadtest.answers import State, describe_outcome, read_log
from profiling.loadtest.http_client import ConnectionConfig
from profiling.loadtest.inputs import COLUMNS, read_inputs
from profiling.loadtest.load import OK, Call, LoadResult, closed_loop
from profiling.loadtest.log import LoadLog, phases, save_log
from profiling.loadtest.plan import (
    CLOSED_CONNECTIONS,
    OPEN_CONNECTIONS,
    WARM_UP_S,
    LoadPlan,
    budget_path,
    read_plan,
    send,
)
from server.cli.options import add_json, add_seed, numbers
from server.cli.progress import time_passes
from server.client_key import add_key_file, advice, key_headers, read_key

Headers = tuple[tuple[str, str], ...]

ASK_TIMEOUT_S = 10.0
CAPACITY_S = 5.0
UNLIMITED_MS = 1e6  # a budget under which every request runs to the last exit
EXAMPLE = """eenet loadtest http://127.0.0.1:8000 --rate 200 --seconds 30
  eenet loadtest http://127.0.0.1:8000 --rate 0:50,20:200 --seconds 60 --model cifar10-resnet56 \\
    --budgets 0:2.0,30:1.4 --phases 0:clean,40:noise-3 --poll-s 0.25 --log load.npz
  eenet loadtest http://127.0.0.1:8000 --trace arrivals.npz --exceeding 0.05 --seconds 60 \\
    --deadline-ms 50"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("url", metavar="URL", help="the server's, such as http://127.0.0.1:8000")
    _add_inputs(parser)
    _add_load(parser)
    _add_requests(parser)
    parser.add_argument(
        "--poll-s", type=float, metavar="X", help="seconds between reads of GET /budget, for --log"
    )
    parser.add_argument(
        "--log",
        type=Path,
        metavar="OUT.npz",
        help="write every request, every change of the budget and every read of it",
    )
    add_key_file(parser, "one of both groups")
    add_seed(parser)
    add_json(parser, "the results")


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    inputs = parser.add_mutually_exclusive_group()
    inputs.add_argument(
        "--images",
        type=Path,
        metavar="FILE.npz|FOLDER",
        help="encoded images as blob, off and y, or image files, labelled by their folders "
        "(default: 300 test images of CIFAR-10, in a checkout of the repository)",
    )
    inputs.add_argument("--texts", type=Path, metavar="FILE.tsv", help="a table of labelled texts")
    for name, default in (("text", COLUMNS.text), ("label", COLUMNS.label)):
        parser.add_argument(
            f"--{name}-column",
            default=default,
            help=f"column of {name}s in --texts: a header, or a number from 0 (default: {default})",
        )
    parser.add_argument(
        "--classes",
        metavar="A,B|S:A+B,...",
        help="send only inputs of these true classes, as the labels name them: 3,5 or cat,dog; "
        "with times, these classes or all from second S on: 0:all,20:3+5",
    )
    parser.add_argument(
        "--phases",
        default="clean",
        metavar="S:FORM,...",
        help="the inputs' form from second S on: clean; of images noise-1 to noise-5, blur-, "
        "jpeg-, contrast-; of texts shorter-N words, longer-N texts in one, misspelt-N per cent",
    )


def _add_load(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--connections",
        type=int,
        help=f"connections open at a time (default: {CLOSED_CONNECTIONS}; with --rate or --trace "
        f"at most {OPEN_CONNECTIONS})",
    )
    arrivals = parser.add_mutually_exclusive_group()
    arrivals.add_argument(
        "--rate",
        "--rates",
        metavar="R|S:R,...",
        help="requests per second at random times, independent of the answers, from second S on "
        "(default: each connection sends its next request when its answer has arrived)",
    )
    arrivals.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="send requests at recorded times: one time in seconds per line, or an npz with "
        "arrival_s; its first --seconds as they are, or all of it with --exceeding",
    )
    parser.add_argument(
        "--exceeding",
        type=float,
        metavar="SHARE",
        help="with --trace: compress it to --seconds, and scale its rate until this share of the "
        "seconds exceeds the capacity at full depth",
    )
    parser.add_argument(
        "--capacity",
        type=float,
        metavar="R",
        help="with --exceeding: requests per second at full depth (default: measured before, in "
        f"{CAPACITY_S:g} s of requests that all run to the last exit)",
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="duration of the load (default: %(default)g)"
    )


def _add_requests(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="model that answers and whose budget is set")
    parser.add_argument(
        "--budget-ms", type=float, help="budget of each request (default: the server's budget)"
    )
    parser.add_argument(
        "--deadline-ms", type=float, help="deadline of each request (default: none)"
    )
    parser.add_argument(
        "--slo-ms",
        type=numbers,
        metavar="MS,MS,...",
        help="report the share of all requests that were answered within each time, refused ones "
        "included (default: the deadline)",
    )
    parser.add_argument(
        "--budgets",
        metavar="S:MS,...",
        help="at second S set the server's budget to MS, or remove it with off",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Send the load and print a report."""
    _check(args)
    columns = Columns(args.text_column, args.label_column)
    inputs = read_inputs(args.images, args.texts, columns)
    plan = read_plan(args, inputs)
    headers = key_headers(read_key(args.key_file, os.environ))
    before = ask_budgets(args.url, args.model, headers)  # fails at once where there is no server
    if args.exceeding is not None:
        capacity = args.capacity or measure_capacity(args.url, plan, headers)
        plan = plan.overloading(args.exceeding, capacity)
    with time_passes("loading", plan.seconds):
        result = send(args.url, plan, headers)
    check_answered(result)
    log, models = read_log(
        result, plan.inputs, plan.variants, inputs.labels, before, plan.budgets.values
    )
    if args.log is not None:
        save_log(log, args.log)
    after = ask_budgets(args.url, args.model, headers)
    states = [each for each in after if each.get("model") in models]
    report = _report(args, plan, result, log, models, states)
    print("\n".join(_lines(report)))
    return report


def interrupted(args: argparse.Namespace) -> str:
    """Sentence after Ctrl-C."""
    kept = "" if args.budgets is None else "; the server keeps the budget that was set last"
    return f"stopped; nothing was written{kept}; run the same command again"


def _check(args: argparse.Namespace) -> None:
    given = {
        "--connections": args.connections,
        "--seconds": args.seconds,
        "--budget-ms": args.budget_ms,
        "--deadline-ms": args.deadline_ms,
        "--poll-s": args.poll_s,
        "--capacity": args.capacity,
    }
    for flag, value in given.items():
        if value is not None and not 0 < value < float("inf"):  # NaN fails too
            raise ValueError(f"{flag} is {value:g}; give a number above 0")
    for slo_ms in args.slo_ms or ():
        if not 0 < slo_ms < float("inf"):
            raise ValueError(f"--slo-ms holds {slo_ms:g}; give milliseconds above 0")
    if args.exceeding is not None and args.trace is None:
        raise ValueError("--exceeding goes with --trace, whose rate it scales")
    if args.capacity is not None and args.exceeding is None:
        raise ValueError("--capacity goes with --exceeding, which is measured against it")
    if args.log is not None and not args.log.parent.is_dir():
        raise ValueError(f"--log is {args.log}, whose folder does not exist; make it first")


def check_answered(result: LoadResult) -> None:
    """Check that a load had an answer.

    Raises:
        ValueError: If it had none.
    """
    if not result.ok.any():
        first = describe_outcome(result, 0)
        raise ValueError(f"no request was answered; the first: {first}{_advice(result)}")


def _advice(result: LoadResult) -> str:
    outcome = result.outcome[0]
    return advice(int(outcome)) if outcome.isdigit() else ""


def measure_capacity(url: str, plan: LoadPlan, headers: Headers = ()) -> float:
    """Return the requests per second that are answered if all run to the last exit.

    Raises:
        ValueError: If none is answered.
    """
    query = {"budget_ms": UNLIMITED_MS} | ({} if plan.model is None else {"model": plan.model})
    path = f"/predict?{urlencode(query)}"
    calls = [call._replace(path=path) for call in plan.calls[: plan.num_inputs]]
    config = ConnectionConfig(CLOSED_CONNECTIONS, keep_bodies=True, headers=headers)
    with time_passes("measuring the capacity", CAPACITY_S + WARM_UP_S):
        result = closed_loop(url, calls, config, seconds=CAPACITY_S, warm_up_s=WARM_UP_S)
    check_answered(result)
    return result.rate


def ask_budgets(url: str, model: str | None, headers: Headers = ()) -> list[State]:
    """Read the budget of one model or of all.

    Raises:
        ValueError: If the server does not answer, or does not know the model.
    """
    path = budget_path(model)
    config = ConnectionConfig(1, timeout_s=ASK_TIMEOUT_S, keep_bodies=True, headers=headers)
    asked = closed_loop(url, [Call(path, method="GET")], config, count=1)
    if asked.bodies is None or not asked.outcome[0].isdigit():
        raise ValueError(
            f"{url} does not answer ({asked.outcome[0]}); start a server there with eenet serve"
        )
    if asked.outcome[0] != OK:
        raise ValueError(f"{url} answers {path} with {describe_outcome(asked, 0)}{_advice(asked)}")
    try:
        models: list[State] = json.loads(asked.bodies[0])["models"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{url} is not a server of eenet serve: its GET /budget answers something else"
        ) from error
    return models


def _report(
    args: argparse.Namespace,
    plan: LoadPlan,
    result: LoadResult,
    log: LoadLog,
    models: list[str],
    states: Sequence[State],
) -> dict[str, Any]:
    shown = (
        "model", "budget_ms", "measure", "rolling_latency_ms", "feasible", "promise", "summary",
        "reason",
    )  # fmt: skip
    percentiles = result.percentiles(50, 90, 99) or ()
    samples, puts = log.samples, result.beside[0]
    answered, judged = samples.exit >= 0, samples.correct >= 0
    rates = np.bincount(samples.exit[answered], minlength=log.num_exits) / answered.sum()
    slos_ms = args.slo_ms or ([] if args.deadline_ms is None else [args.deadline_ms])
    return {
        "url": args.url,
        "offered_rate": plan.mean_rate,
        "seconds": result.seconds,
        "requests": len(result.call),
        "rate": result.rate,
        "latency_ms": dict(zip(("p50", "p90", "p99"), percentiles, strict=True)),
        "outcomes": result.outcomes,
        "models": models,
        "exit_rates": rates.tolist(),
        "accuracy": float(samples.correct[judged].mean()) if judged.any() else None,
        "accuracy_of_all": float((samples.correct == 1).mean()) if judged.any() else None,
        "in_time": [
            {"slo_ms": slo_ms, "share": float((result.ok & (result.latency_ms <= slo_ms)).mean())}
            for slo_ms in slos_ms
        ],
        "trace": _trace(plan),
        "compute_ms": float(samples.compute_ms[answered].mean()),
        "late": int(samples.late.sum()),
        "measure": log.measure,
        "phases": [phase._asdict() for phase in phases(log)],
        "budgets_not_set": [
            describe_outcome(puts, row) for row in np.flatnonzero(~puts.ok).tolist()
        ],
        "budgets": [{name: each.get(name) for name in shown} for each in states],
    }


def _trace(plan: LoadPlan) -> dict[str, Any] | None:
    if plan.replay is None:
        return None
    return {name: value for name, value in plan.replay._asdict().items() if name != "arrivals_s"}


def _lines(report: dict[str, Any]) -> list[str]:
    """Lines of the report for people."""
    outcomes = ", ".join(f"{outcome} {count}" for outcome, count in report["outcomes"].items())
    latency = ", ".join(f"{name} {ms:.3f}" for name, ms in report["latency_ms"].items())
    late = f", {report['late']} after their deadline" if report["late"] else ""
    each_phase = report["phases"] if len(report["phases"]) > 1 else []
    return [
        f"{report['requests']} requests in {report['seconds']:.2f} s: {report['rate']:.1f} "
        f"answers/s ({outcomes}{late})",
        f"latency {latency} ms; compute {report['compute_ms']:.3f} ms on average",
        _exits(report["exit_rates"], report["accuracy"]),
        *_of_all(report),
        *(_phase_line(phase, report["measure"]) for phase in each_phase),
        *(f"a budget was not set: {sentence}" for sentence in report["budgets_not_set"]),
        *(_budget_line(each) for each in report["budgets"]),
        *(line for each in report["budgets"] for line in _promise_lines(each)),
    ]


def _exits(rates: Sequence[float], accuracy: float | None) -> str:
    shown = " ".join(f"{rate:.3f}" for rate in rates)
    return f"exit rates {shown}" + ("" if accuracy is None else f", accuracy {accuracy:.2%}")


def _of_all(report: dict[str, Any]) -> list[str]:
    """Lines about all requests, in which one without an answer is late and wrong."""
    trace, accuracy = report["trace"], report["accuracy_of_all"]
    lines = []
    if trace is not None and trace["exceeding"] is not None:
        lines.append(
            f"the trace {trace['compression']:.1f} times as fast, with {trace['scale']:.2f} times "
            f"its requests: {trace['exceeding']:.1%} of the seconds exceed "
            f"{trace['capacity_per_s']:.1f} requests/s"
        )
    if report["in_time"]:
        shares = ", ".join(
            f"{each['share']:.2%} within {each['slo_ms']:g} ms" for each in report["in_time"]
        )
        right = "" if accuracy is None else f"; {accuracy:.2%} answered rightly"
        lines.append(f"of all requests {shares}{right}")
    return lines


def _phase_line(phase: dict[str, Any], measure: str) -> str:
    when = f"from {phase['begin_s']:.1f} to {phase['end_s']:.1f} s: {phase['form']}"
    budget_ms, mean_ms = phase["budget_ms"], phase["mean_ms"]
    budget = "no budget" if budget_ms is None else f"budget {budget_ms:g} ms"
    if mean_ms is None:
        return f"{when}, {budget}, no answer"
    error = "" if phase["budget_error"] is None else f" ({100 * phase['budget_error']:+.1f} %)"
    exits = _exits(phase["exit_rates"], phase["accuracy"])
    return f"{when}, {budget}, mean {mean_ms:.3f} ms of {measure}{error}, {exits}"


def _budget_line(state: dict[str, Any]) -> str:
    budget_ms, rolling_ms = state["budget_ms"], state["rolling_latency_ms"]
    rolling = "no latency" if rolling_ms is None else f"{rolling_ms:.3f} ms"
    budget, error = "no budget", ""
    if budget_ms is not None:
        budget = f"budget {budget_ms:g} ms" + (
            "" if state["feasible"] else ", which cannot be kept"
        )
        error = "" if rolling_ms is None else f" ({100 * (rolling_ms / budget_ms - 1):+.1f} %)"
    return f"{state['model']}: {budget}, {rolling} in the rolling mean of {state['measure']}{error}"


def _promise_lines(state: dict[str, Any]) -> list[str]:
    """The promise of a server, and why it is not kept if it is not; older servers have none."""
    promised = state.get("summary"), state.get("reason")
    return [f"{state['model']}: {sentence}" for sentence in promised if sentence]
