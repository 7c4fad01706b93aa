"""A loaded model: bundle, engine, controllers, and the way from bytes to an answer."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

from models.bundle import Bundle
from models.onnx_backend import OnnxBackend
from models.preprocess import Prepared, Unreadable
from scheduler.controller import BudgetController, ControllerConfig, Sample
from scheduler.scheduler import load_scheduler
from server.engine import Engine
from server.errors import InvalidContent, ServeError
from server.host_costs import default_budget_ms, measure_costs
from server.masks import mask_png
from server.metrics import Metrics, ModelMetrics
from server.row import Answer, Completion, Row
from server.schemas import BudgetState, FrontierEntry, Options
from server.settings import Settings

log = logging.getLogger(__name__)

Measure = Literal["compute", "end_to_end"]
Modality = Literal["image", "text"]
Input = bytes | str


class Served(NamedTuple):
    """One sample's answer, where its time went, and what it was made of."""

    answer: Answer
    decode_ms: float
    total_ms: float
    truncated: bool
    mask: bytes | None  # a PNG


class _Request(NamedTuple):
    """What is needed when a row completes: tag of the engine's rows."""

    future: asyncio.Future[tuple[Answer, float]]  # and the total latency in ms
    received_s: float
    controlled: bool  # under the global budget


class ServedModel:
    """One bundle being served. All methods but the constructor belong to the event loop's thread.

    The constructor loads, warms up and measures what each exit costs on this host; `start` and
    `stop` bracket serving.

    Args:
        bundle: A verified bundle.
        settings: The server's.
        metrics: The app's.
        decode_pool: Threads that turn bytes into arrays.
        clock: Seconds, monotonic.

    Raises:
        ValueError: If a graph or the scheduler cannot be read, or they do not fit together.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: Settings,
        metrics: Metrics,
        decode_pool: ThreadPoolExecutor,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        manifest = bundle.manifest
        self.name, self.version, self.classes = manifest.name, manifest.version, manifest.classes
        self.task = manifest.task
        self.num_exits = manifest.num_exits
        self.broken: str | None = None
        self.clock = clock
        # Which of the two it takes, `reads` says, and routes hand it nothing else.
        self._preprocess: Any = bundle.preprocessor(settings.max_pixels)
        self._decode_pool = decode_pool
        self._metrics = ModelMetrics(metrics, self.name, self.num_exits)
        backend = OnnxBackend(bundle.stage_files, bundle.head_files, device=settings.device)
        policy, frontier = load_scheduler(bundle.folder)
        if policy.num_exits != self.num_exits:
            raise ValueError(
                f"{bundle.folder}: the scheduler has {policy.num_exits} exits, the network "
                f"{self.num_exits}"
            )
        metrics.model_info.labels(self.name, self.version, policy.kind, backend.device).set(1)
        costs_ms = measure_costs(backend, policy, self._preprocess.example)
        built_on, frontier = frontier, frontier.with_costs(costs_ms)
        if moved := built_on.moved_stages(costs_ms):
            log.warning(
                "%s: the share of stages %s in the whole time differs by more than a fifth from "
                "the machine that fitted the scheduler; `eenet fit` with this "
                "host's --costs fits it again",
                self.name,
                moved,
            )
        log.info(
            "%s costs %s ms until each exit on this host",
            self.name,
            costs_ms.round(3).tolist(),
        )
        budget_ms = settings.budget_ms
        if budget_ms is None and manifest.default_budget_ms is not None:
            budget_ms = default_budget_ms(manifest.default_budget_ms, built_on, frontier)
        config = ControllerConfig(window=settings.window)
        self.measure: Measure = settings.measure
        self._controllers: dict[Measure, BudgetController] = {
            "compute": BudgetController(frontier, budget_ms, config),
            "end_to_end": BudgetController(frontier, budget_ms, config),
        }
        self.engine = Engine(
            backend,
            policy,
            self.controller.parameter,
            workers=settings.workers,
            max_batch=settings.max_batch,
            metrics=self._metrics,
            on_batch=self._on_batch,
            clock=clock,
        )

    @property
    def controller(self) -> BudgetController:
        """The controller in command."""
        return self._controllers[self.measure]

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the engine; answers go to this loop."""
        self._loop = loop
        self.engine.start()

    def stop(self) -> None:
        """Answer what is in, then end the workers; blocks."""
        self.engine.stop()

    @property
    def reads(self) -> Modality:
        """What goes in."""
        return "text" if self.task == "text" else "image"

    async def predict(
        self, load: Callable[[], Input], options: Options, received_s: float
    ) -> Served:
        """Answer one sample.

        Args:
            load: Gives the picture's bytes or the text; called on a decode thread.
            options: The request's.
            received_s: When its headers came, on the model's clock.

        Raises:
            ServeError: If the input is bad, the deadline passes before the first exit, or the
                network fails.
        """
        prepared, decode_ms = await self._loop.run_in_executor(
            self._decode_pool, self._decode, load
        )
        self._metrics.decode_latency.observe(decode_ms / 1e3)
        own = (
            None if options.budget_ms is None else self.controller.parameter_for(options.budget_ms)
        )
        deadline_s = None if options.deadline_ms is None else received_s + options.deadline_ms / 1e3
        tag = _Request(self._loop.create_future(), received_s, controlled=own is None)
        row = Row(prepared.state, tag, own, deadline_s, options.priority, options.trace)
        self.engine.submit([row])
        answer, total_ms = await tag.future
        mask = None
        if self.task == "segmentation" and prepared.size is not None:
            mask = await self._loop.run_in_executor(
                self._decode_pool, mask_png, answer.said.logits, prepared.size
            )
            total_ms = (self.clock() - received_s) * 1e3
        return Served(answer, decode_ms, total_ms, prepared.truncated, mask)

    def set_budget(self, *, budget_ms: float | None, measure: Measure) -> None:
        """Set what the budget is and which latency it is about; the windows stay."""
        self.measure = measure
        for controller in self._controllers.values():
            controller.set_budget(budget_ms)
        self.engine.parameter = self.controller.parameter
        log.info("%s: budget %s ms of %s latency", self.name, budget_ms, measure)

    def tick(self) -> None:
        """Forget what is too old and refresh the gauges."""
        for controller in self._controllers.values():
            controller.expire(self.clock())
        thresholds = self.engine.policy.thresholds(self.controller.parameter)
        shared = None if thresholds is None else thresholds.tolist()
        self._metrics.show_control(self.controller, shared)
        self._metrics.show_queues(self.engine.queue_depths, self.engine.oldest_wait_s())

    async def probe(self) -> None:
        """After a failed batch run the warm-up input: the model is broken if that fails too."""
        if not self.engine.failed:
            return
        tag = _Request(self._loop.create_future(), self.clock(), controlled=False)
        self.engine.submit([Row(self._preprocess.example, tag, priority=0)])
        try:
            await tag.future
        except ServeError:
            self.broken = f"{self.name} fails on every input; see the log and restart"
        else:
            self.broken, self.engine.failed = None, False

    def budget_state(self) -> BudgetState:
        """What GET /budget says."""
        control = self.controller
        control.expire(self.clock())
        point = control.frontier.at_parameter(control.parameter)
        return BudgetState(
            model=self.name,
            policy=self.engine.policy.kind,
            budget_ms=control.budget_ms,
            measure=self.measure,
            effective_budget_ms=control.effective_budget_ms,
            parameter=control.parameter,
            rolling_latency_ms=control.rolling_latency_ms,
            window=control.config.window,
            samples=control.samples,
            floor_ms=control.floor_ms,
            ceiling_ms=control.ceiling_ms,
            feasible=control.feasible,
            reason=self._reason(),
            expected_accuracy=point.expected_accuracy,
            expected_exit_rates=point.exit_rates.tolist(),
            exit_rates=control.exit_rates,
            thresholds=self._shown_thresholds(),
        )

    def frontier(self) -> list[FrontierEntry]:
        """What GET /frontier says: what each budget buys on this host at present."""
        control = self.controller
        frontier, present_ms = control.frontier, control.present_ms
        return [
            FrontierEntry(
                budget_ms=present_ms(point.expected_cost_ms),
                parameter=point.parameter,
                expected_accuracy=point.expected_accuracy,
                expected_cost_ms=present_ms(point.expected_cost_ms),
                exit_rates=point.exit_rates.tolist(),
            )
            for point in (frontier[index] for index in range(len(frontier)))
        ]

    def _shown_thresholds(self) -> list[float | None]:
        thresholds = self.engine.policy.thresholds(self.controller.parameter)
        if thresholds is None:
            return [None] * self.num_exits
        return [
            shown_threshold(value, last=exit == self.num_exits - 1)
            for exit, value in enumerate(thresholds.tolist())
        ]

    def _reason(self) -> str | None:
        control = self.controller
        if control.feasible:
            return None
        return (
            f"the budget of {control.budget_ms:g} ms is below {control.floor_ms:.3g} ms, what "
            f"leaving at exit 0 costs "
            "now; every sample leaves there"
        )

    def _decode(self, load: Callable[[], Input]) -> tuple[Prepared, float]:
        started = self.clock()
        try:
            prepared = self._preprocess(load())
        except Unreadable as error:
            raise InvalidContent(str(error)) from error
        return prepared, (self.clock() - started) * 1e3

    def _on_batch(self, completions: list[Completion]) -> None:
        """Worker thread: hand a batch's completions to the loop in one call."""
        self._loop.call_soon_threadsafe(self._deliver, completions)

    def _deliver(self, completions: list[Completion]) -> None:
        """Loop: answer the waiting requests and tell the controllers."""
        now = self.clock()
        answered: list[tuple[_Request, Answer, float]] = []
        for row, outcome in completions:
            request = row.tag
            assert isinstance(request, _Request), "rows of this engine come from predict and probe"
            total_ms = (now - request.received_s) * 1e3
            if isinstance(outcome, Answer):
                answered.append((request, outcome, total_ms))
            if request.future.done():
                continue
            if isinstance(outcome, Answer):
                request.future.set_result((outcome, total_ms))
            else:
                request.future.set_exception(outcome)
        for _, answer, total_ms in answered:
            self._metrics.predictions[answer.exit].inc()
            self._metrics.request_latency.observe(total_ms / 1e3)
            self._metrics.compute_latency.observe(answer.compute_ms / 1e3)
            self._metrics.queue_latency.observe(answer.queue_ms / 1e3)
        self._control(
            [(answer, total_ms) for request, answer, total_ms in answered if request.controlled],
            now,
        )

    def _control(self, answered: list[tuple[Answer, float]], now: float) -> None:
        compute = [Sample(answer.exit, answer.compute_ms, 0.0) for answer, _ in answered]
        end_to_end = [
            Sample(answer.exit, total_ms, total_ms - answer.compute_ms)
            for answer, total_ms in answered
        ]
        self._controllers["compute"].observe(compute, now)
        self._controllers["end_to_end"].observe(end_to_end, now)
        self.engine.parameter = self.controller.parameter


def shown_threshold(value: float, *, last: bool) -> float | None:
    """A threshold for people: None where it never fires or is the last, 0 where it always does."""
    if last or value == math.inf:
        return None
    return 0.0 if value == -math.inf else value
