"""`eenet predict`: predictions without a server, as JSON lines."""

import argparse
import json
import math
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO, get_args

import numpy as np

from models.bundle import Bundle, TextInput, load_bundle
from models.data.image_folder import SUFFIXES
from models.data.transcode import to_known_format
from models.postprocess import mask_png
from models.preprocess import InvalidInput, ModelInput
from scheduler.control.controller import BudgetController, ControllerConfig
from server.cli.options import add_backend, backend_settings
from server.cli.progress import Progress
from server.engine.engine import Engine
from server.engine.request import InferenceRequest, Prediction
from server.engine.warmup import measure_costs
from server.hot_route import optional_fields, prediction_fields
from server.label_sets import label_set_fields, label_set_options
from server.loading import calibrate_to_host, open_served, read_schedulers
from server.promise import PromiseKeeper
from server.settings import Settings

EXAMPLE = """eenet predict my-bundle photo.jpg folder-of-images --budget-ms 1.5 --top-k 3
  cat texts.txt | eenet predict my-text-bundle -"""
STDIN = "-"
IN_FLIGHT = 64  # inputs between reading and printing
SOME_FAILED = 1  # exit status


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("folder", metavar="BUNDLE", type=Path, help="folder of `eenet build`")
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="images or folders of images; for a model that reads texts, files with one text per "
        "line, or - for standard input",
    )
    parser.add_argument(
        "--budget-ms",
        type=float,
        help="mean-latency budget on this machine (default: none; at most 1 %% of the samples get "
        "another answer than from the whole network)",
    )
    parser.add_argument(
        "--parameter", type=float, help="parameter of the policy, in place of a budget"
    )
    parser.add_argument(
        "--top-k", type=int, default=5, help="number of classes to list (default: %(default)s)"
    )
    parser.add_argument(
        "--trace", action="store_true", help="include the output of every exit that was run"
    )
    precision = Settings.model_fields["precision"]
    parser.add_argument(
        "--precision",
        choices=get_args(precision.annotation),
        default=precision.default,
        help=f"{precision.description} (default: {precision.default})",
    )
    add_backend(parser)


def run(args: argparse.Namespace) -> None:
    """Print one JSON line per input, in order; exit status 1 if an input failed."""
    _check(args)
    bundle = load_bundle(args.folder)
    reads_text = bundle.manifest.task == "text"
    items, total = read_items(args.files, sys.stdin, reads_text=reads_text)
    if isinstance(bundle.manifest.input, TextInput) and bundle.manifest.input.pair:
        items = map(_as_pair, items)
    settings = backend_settings(args).model_copy(update={"precision": args.precision})
    with OfflineModel(bundle, settings, args.budget_ms, args.parameter, trace=args.trace) as model:
        printer = _Printer(lambda pending: _line(bundle, pending, args.top_k), total)
        try:
            for item in items:
                printer.put(model.submit(item))
                if printer.error is not None:
                    break
        finally:
            printer.close()
    if printer.error is not None:
        raise printer.error
    if printer.failed:
        raise SystemExit(SOME_FAILED)


def interrupted(args: argparse.Namespace) -> str:
    """Sentence after Ctrl-C."""
    return "stopped; inputs without a printed line have no prediction"


def _check(args: argparse.Namespace) -> None:
    if args.budget_ms is not None and args.parameter is not None:
        raise ValueError("--budget-ms and --parameter both choose where inputs exit; give one")
    if args.budget_ms is not None and not 0 < args.budget_ms < float("inf"):
        raise ValueError(f"--budget-ms is {args.budget_ms:g}; give a number above 0")
    if args.parameter is not None and math.isnan(args.parameter):
        raise ValueError("--parameter is nan; give a number")
    if args.top_k < 1:
        raise ValueError(f"--top-k is {args.top_k}; give 1 or more")


class Item(NamedTuple):
    """An input and its origin.

    Attributes:
        origin: First fields of the JSON line: file, line, text.
        content: An image's bytes, a text or a pair of texts; None if it cannot be read.
        error: Reason why it cannot be read.
    """

    origin: dict[str, Any]
    content: bytes | str | tuple[str, str] | None
    error: str | None = None


def read_items(
    files: Sequence[str], stdin: TextIO, *, reads_text: bool
) -> tuple[Iterator[Item], int | None]:
    """Read the inputs of the command, each when its turn comes.

    Args:
        files: Paths, or - for standard input.
        stdin: Standard input.
        reads_text: Whether the model reads texts.

    Returns:
        The inputs and, if it is known beforehand, their number.

    Raises:
        ValueError: If images are to come from standard input.
    """
    if not reads_text:
        if STDIN in files:
            raise ValueError("standard input holds texts, but this model reads images")
        paths = [path for file in files for path in _image_paths(Path(file))]
        return map(_image, paths), len(paths)
    return (item for file in files for item in _texts(file, stdin)), None


def _image_paths(path: Path) -> list[Path]:
    """The images of a folder and its subfolders; a file as it is, as is a folder without any."""
    found = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES)
    return found or [path]


def _image(path: Path) -> Item:
    origin = {"file": str(path)}
    if path.is_dir():
        return Item(origin, None, "the folder holds no images")
    try:
        return Item(origin, to_known_format(path.read_bytes()))
    except OSError as error:
        return Item(origin, None, f"cannot be read: {error.strerror or error}")
    except InvalidInput as error:
        return Item(origin, None, str(error))


def _texts(file: str, stdin: TextIO) -> Iterator[Item]:
    """The texts of a file, one per line; empty lines are left out."""
    if file == STDIN:
        yield from _lines(file, stdin)
        return
    try:
        with Path(file).open(encoding="utf-8") as lines:
            yield from _lines(file, lines)
    except OSError as error:
        yield Item({"file": file}, None, f"cannot be read: {error.strerror or error}")
    except UnicodeDecodeError as error:
        yield Item({"file": file}, None, f"the model reads texts, and this is not UTF-8: {error}")


def _lines(file: str, lines: Iterable[str]) -> Iterator[Item]:
    for number, line in enumerate(lines, start=1):
        text = line.rstrip("\r\n")
        if text:
            yield Item({"file": file, "line": number, "text": text}, text)


def _as_pair(item: Item) -> Item:
    """Split a line at its tab, for a model that reads pairs of texts."""
    first, tab, second = str(item.content).partition("\t")
    if item.content is None or not tab:
        return item
    return item._replace(content=(first, second))


@dataclass(eq=False)
class Pending:
    """An input on its way to its prediction.

    Attributes:
        item: The input.
        request: Its request to the engine.
        done: Set once there is a prediction or an error.
        error: Reason why there is no prediction.
    """

    item: Item
    request: InferenceRequest
    done: threading.Event = field(default_factory=threading.Event)
    error: str | None = None


class OfflineModel:
    """A bundle's network under its policy in this process: the engine of the server, no HTTP.

    Args:
        bundle: A verified bundle.
        settings: Backend, device and precision.
        budget_ms: Mean latency on this machine; None: the settings' promise about answers, by the
            certification rows, as a server that starts.
        parameter: Parameter of the policy in place of a budget, or None.
        trace: Whether predictions have the output of every exit.
        clock: Seconds, monotonic.

    Raises:
        ValueError: If a graph or the scheduler cannot be read, or they do not fit together.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: Settings,
        budget_ms: float | None = None,
        parameter: float | None = None,
        *,
        trace: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._trace, self._clock = trace, clock
        self._preprocess: Any = bundle.preprocessor(**settings.image_bounds)
        example = self._preprocess.example
        variant, backend = open_served(bundle, settings, example)
        fitted = read_schedulers(variant, settings.policy)
        first = next(iter(fitted.values()))
        costs = measure_costs(backend, first.policy, example, settings.max_batch, first.combiner)
        schedulers = calibrate_to_host(variant, fitted, costs)
        scheduler = schedulers.chosen
        if parameter is None and budget_ms is None:
            keeper = PromiseKeeper(
                schedulers, settings.max_disagreement, settings.confidence, audits=False
            )
            scheduler, parameter = keeper.scheduler(None), keeper.parameter(None)
        elif parameter is None and budget_ms is not None:
            # The server's choice for a request with a budget of its own.
            controller = BudgetController(scheduler.frontier, None, ControllerConfig())
            parameter = controller.parameter_for(budget_ms)
        policy = scheduler.policy
        self.parameter = policy.never_exit_parameter if parameter is None else parameter
        self.engine = Engine(
            backend,
            policy,
            self.parameter,
            workers=settings.workers_on(backend.device),
            max_batch=settings.max_batch or costs.worthwhile_rows(),
            on_done=self._deliver,
            costs=costs,
            clock=clock,
            combiner=scheduler.combiner,
        )
        self._decode_pool = ThreadPoolExecutor(settings.decode_workers)

    def __enter__(self) -> "OfflineModel":
        self.engine.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._decode_pool.shutdown(cancel_futures=True)
        self.engine.stop()

    def submit(self, item: Item) -> Pending:
        """Start the prediction of an input."""
        request = InferenceRequest(received_s=self._clock(), traced=self._trace)
        pending = Pending(item, request)
        request.on_done = pending.done.set
        self._decode_pool.submit(self._decode, pending)
        return pending

    def _decode(self, pending: Pending) -> None:
        """Decode thread: decode the input and hand its request to the engine."""
        request = pending.request
        try:
            if pending.item.error is not None:
                raise ValueError(pending.item.error)
            started_s = self._clock()
            decoded: ModelInput = self._preprocess(pending.item.content)
            request.decode_ms = (self._clock() - started_s) * 1e3
            request.state, request.truncated = decoded.state, decoded.truncated
            request.image_size, request.unknown_share = decoded.size, decoded.unknown_share
            self.engine.submit([request])
        except Exception as error:  # A bug in our code: the printer must not wait for ever.
            pending.error = str(error)
            pending.done.set()

    def _deliver(self, finished: list[InferenceRequest]) -> None:
        """Worker thread: hand finished requests to the printer."""
        done_s = self._clock()
        for request in finished:
            request.total_ms = (done_s - request.received_s) * 1e3
            assert request.on_done is not None, "all requests come from submit"
            request.on_done()


class _Printer:
    """Prints predictions in the order of their inputs, while further inputs are read.

    Args:
        line: Makes the JSON object of an input.
        total: Number of inputs, if it is known.

    Attributes:
        failed: Number of inputs without a prediction.
        error: Set if standard output cannot be written to.
    """

    def __init__(self, line: Callable[[Pending], dict[str, Any]], total: int | None) -> None:
        self.failed = 0
        self.error: Exception | None = None
        self._line = line
        self._queue: queue.Queue[Pending | None] = queue.Queue(IN_FLIGHT)
        # On a terminal the lines themselves are the progress.
        is_shown = total is not None and not sys.stdout.isatty()
        self._progress = Progress("input", total or 0) if is_shown else None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, pending: Pending) -> None:
        """Print an input once its prediction is ready; waits while too many are in flight."""
        self._queue.put(pending)

    def close(self) -> None:
        """Print the inputs that are in flight, then end."""
        self._queue.put(None)
        self._thread.join()
        if self._progress is not None:
            self._progress.close()

    def _run(self) -> None:
        printed = 0
        while (pending := self._queue.get()) is not None:
            try:
                line = self._line(pending)
                self.failed += "error" in line
                if self.error is None:
                    print(json.dumps(line), flush=True)  # ASCII: it suits any terminal or pipe
            except Exception as error:
                self.error = error  # take the rest from the queue, so that the reader never waits
            printed += 1
            if self._progress is not None:
                self._progress.update(printed)


def _line(bundle: Bundle, pending: Pending, top_k: int) -> dict[str, Any]:
    """The JSON object of an input; waits for its prediction."""
    pending.done.wait()
    request, prediction = pending.request, pending.request.result
    if not isinstance(prediction, Prediction):
        return {**pending.item.origin, "error": pending.error or str(prediction)}
    manifest, mask = bundle.manifest, None
    if manifest.thresholds is not None:
        about = manifest.classes, np.array(manifest.thresholds)
        return {
            **pending.item.origin,
            **label_set_fields(request, *about, top_k),
            **label_set_options(request, *about),
        }
    if manifest.task == "segmentation" and request.image_size is not None:
        mask = mask_png(prediction.output.logits, request.image_size)
    return {
        **pending.item.origin,
        **prediction_fields(request, manifest.classes, manifest.num_exits, top_k),
        **optional_fields(request, manifest.classes, manifest.num_exits, mask),
    }
