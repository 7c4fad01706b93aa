"""What each precision of a bundle costs: CPU time, accuracy and size of every exit.

    .venv/bin/python -m benchmarks.precision [BUNDLE...] [--plain GRAPH.onnx]

All precisions pass the same input through their stages in turns, one row, one thread, beside the
plain network in single precision that benchmarks/peers serves. Times are CPU times of the thread.
JSON on the last line.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import BUNDLES, IMAGE_BUNDLE, MAX_PIXELS, make_parser, print_report
from benchmarks.peers.classifier import open_session
from benchmarks.peers.graphs import write_whole_graph
from benchmarks.peers.running import BUILD
from benchmarks.peers.tasks import PLAIN_IMAGE_GRAPHS
from models.backend import State
from models.bundle import Bundle, Variant, load_bundle
from models.preprocess import ImagePreprocessor
from models.runtime.instruction_set import integer_instructions
from models.runtime.onnx_backend import OnnxBackend
from profiling.calibration import load_recorded

ROUNDS, SMOKE_ROUNDS = 500, 3
Clock = Callable[[], float]


class Times(NamedTuple):
    """CPU times of one pass in ms.

    Attributes:
        stages_ms: All stages in sequence, without heads.
        exits_ms: From the start until each exit, with all heads before, (K,).
    """

    stages_ms: float
    exits_ms: NDArray[np.float64]


def main() -> None:
    """Print a table per bundle."""
    parser = make_parser(__doc__)
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE", help="default: shipped")
    parser.add_argument(
        "--plain",
        type=Path,
        metavar="GRAPH.onnx",
        help="graph to compare with; default: that of the peers for the shipped images, else all "
        "stages and the last head in float32",
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("give --rounds of 1 or more")
    instructions = integer_instructions()
    print(f"integer instructions of this CPU: {instructions}")
    reports = {}
    for folder in args.bundles or BUNDLES.values():
        bundle = load_bundle(folder)
        report = compare(bundle, args.plain, SMOKE_ROUNDS if args.smoke else args.rounds)
        print("\n".join(table(bundle.manifest.name, report)))
        reports[str(folder)] = report
    print_report({"integer_instructions": instructions, "bundles": reports}, smoke=args.smoke)


def compare(bundle: Bundle, plain: Path | None, rounds: int) -> dict[str, Any]:
    """Measure all precisions of a bundle beside a plain network."""
    variants = [bundle.variant(precision) for precision in bundle.precisions]
    preprocess = bundle.preprocessor(MAX_PIXELS)
    run_plain = plain_pass(plain or plain_graph(bundle), plain_state(preprocess))
    passes = [stage_pass(variant, preprocess.example) for variant in variants]
    plain_ms, times = measure_in_turns(run_plain, passes, rounds)
    return {
        "plain_ms": plain_ms,
        "precisions": {
            variant.precision: figures(variant, found, plain_ms)
            for variant, found in zip(variants, times, strict=True)
        },
    }


def figures(variant: Variant, times: Times, plain_ms: float) -> dict[str, Any]:
    """Times, their ratios to the plain network, accuracy and size of one precision."""
    return {
        "stages_ms": times.stages_ms,
        "stages_of_plain": times.stages_ms / plain_ms,
        "exits_ms": times.exits_ms.tolist(),
        "whole_of_plain": float(times.exits_ms[-1]) / plain_ms,
        "accuracy": load_recorded(variant.predictions).test.correct.mean(0).tolist(),
        "bytes": exit_bytes(variant),
    }


def exit_bytes(variant: Variant) -> list[int]:
    """Size of the graphs that are needed until each exit, (K,)."""
    exits = range(variant.bundle.manifest.num_exits)
    return list(itertools.accumulate(map(variant.exit_bytes, exits)))


def plain_graph(bundle: Bundle) -> Path:
    """The graph in single precision that the peers serve."""
    if bundle.folder.resolve() == IMAGE_BUNDLE:
        return PLAIN_IMAGE_GRAPHS["float32"]
    path = BUILD / f"{bundle.manifest.name}-float32.onnx"
    write_whole_graph(bundle.variant("float32"), path)
    return path


def plain_pass(graph: Path, state: State) -> Callable[[], object]:
    """A function that runs a whole graph as the peers do."""
    session = open_session(str(graph))
    names = [given.name for given in session.get_inputs()]
    given = dict(zip(names, state, strict=True))
    return lambda: session.run(None, given)


def stage_pass(variant: Variant, state: State, clock: Clock = time.thread_time) -> "Pass":
    """A function that runs a variant's stages on an input, and returns the times in seconds."""
    backend = OnnxBackend(variant.stage_files, variant.head_files)

    def run(with_heads: bool) -> list[float]:
        reached, times = state, [clock()]
        for k in range(backend.num_exits):
            reached = backend.run_stage(k, reached)
            if with_heads:
                backend.run_head(k, reached)
            times.append(clock())
        return [each - times[0] for each in times[1:]]

    return run


Pass = Callable[[bool], list[float]]


def measure_in_turns(
    run_plain: Callable[[], object],
    passes: Sequence[Pass],
    rounds: int,
    clock: Clock = time.thread_time,
) -> tuple[float, list[Times]]:
    """Median CPU time of the plain network in ms, and the times of each of P variants.

    Args:
        run_plain: Runs the plain network.
        passes: Run a variant, with or without heads; P of them.
        rounds: Rounds to measure; a tenth as many come before and do not count.
        clock: CPU time of this thread in seconds.
    """
    plain: list[float] = []
    bare: list[list[float]] = []  # (rounds, P)
    whole: list[list[list[float]]] = []  # (rounds, P, K)
    for _ in range(rounds + rounds // 10 + 1):
        started = clock()
        run_plain()
        plain.append(clock() - started)
        bare.append([run(False)[-1] for run in passes])
        whole.append([run(True) for run in passes])
    plain_ms, bare_ms, whole_ms = (
        1e3 * np.median(each[-rounds:], axis=0) for each in (plain, bare, whole)
    )
    return float(plain_ms), [Times(*each) for each in zip(bare_ms.tolist(), whole_ms, strict=True)]


def table(name: str, report: dict[str, Any]) -> list[str]:
    """One line per precision and exit, in Markdown."""
    lines = [
        f"{name}: CPU time of one pass, one row, one thread; plain network in float32 "
        f"{report['plain_ms']:.3f} ms",
        "| precision | exit | accuracy, % | ms | of plain | size, MB |",
        "|---|---|---|---|---|---|",
    ]
    for precision, of in report["precisions"].items():
        exits = zip(of["accuracy"], of["exits_ms"], of["bytes"], strict=True)
        for k, (accuracy, exit_ms, size) in enumerate(exits):
            lines.append(
                f"| {precision} | {k} | {100 * accuracy:.2f} | {exit_ms:.3f} | "
                f"{exit_ms / report['plain_ms']:.2f} | {size / 1e6:.2f} |"
            )
    for precision, of in report["precisions"].items():
        lines.append(
            f"stages in sequence without heads, {precision}: {of['stages_ms']:.3f} ms, "
            f"{of['stages_of_plain']:.2f} of the plain network"
        )
    return lines


def plain_state(preprocess: Any) -> State:
    """An input of the plain network, which takes normalised images."""
    if isinstance(preprocess, ImagePreprocessor):
        pixels = np.zeros((1, preprocess.height, preprocess.width, 3), np.uint8)
        return (preprocess.normalise(pixels),)
    return preprocess.example  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
