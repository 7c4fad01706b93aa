"""A loaded model: bundle, engine, controllers, and the way from bytes to an answer."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Literal

from models.bundle import Bundle
from models.postprocess import mask_png
from scheduler.control.controller import BudgetController, ControllerConfig, Sample
from server.decoder import Decoder
from server.dispatch import Entrance, Wishes
from server.engine.active_policy import ActivePolicy
from server.engine.engine import Engine
from server.engine.request import Completion, InferenceRequest, Prediction
from server.engine.warmup import default_budget_ms, measure_costs, try_policy
from server.errors import ServeError
from server.loading import CalibratedPolicy, calibrate_to_host, open_backend, read_scheduler, reload
from server.metrics import AnswerLatency, Metrics, ModelMetrics
from server.quality.agreement_floor import AgreementGuard, AgreementTarget
from server.quality.audit_log import AuditLog
from server.quality.auditor import Auditor
from server.quality.feedback import Feedback, LoggedPrediction
from server.sample import Load, Modality, Request, Served
from server.schemas import Options
from server.settings import Settings

log = logging.getLogger(__name__)

COUNT_SAMPLES = 16  # well below a controller's period

Measure = Literal["compute", "end_to_end"]


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
        decode_pool: Executor,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        manifest = bundle.manifest
        self.name, self.version, self.classes = manifest.name, manifest.version, manifest.classes
        self.task = manifest.task
        self.num_exits = manifest.num_exits
        self.broken: str | None = None
        self.clock = clock
        self._decode = Decoder(bundle.preprocessor(settings.max_pixels), clock)
        self._decode_pool = decode_pool
        self._metrics = ModelMetrics(metrics, self.name, self.num_exits)
        self.auditor = Auditor(
            AuditLog(self.num_exits),
            self._metrics.audit,
            share=settings.audit_share,
            rng=random.Random(0),
        )
        backend = open_backend(bundle, settings)
        policy, built_on = scheduler = read_scheduler(bundle)
        self._costs = measure_costs(backend, policy, self._decode.example, settings.max_batch)
        self._max_batch = settings.max_batch or self._costs.worthwhile_rows()
        self._scheduler = calibrate_to_host(bundle, scheduler, self._costs)
        self._agreement_target = AgreementTarget(settings.min_agreement, settings.prefer)
        self.quality = AgreementGuard(self._scheduler, self._agreement_target)
        self._floor_parameter: float | None = None
        frontier = self._scheduler.frontier
        costs_ms = self._costs.costs_ms.round(3).tolist()
        log.info("%s costs %s ms until each exit on this host", self.name, costs_ms)
        budget_ms = settings.budget_ms
        if budget_ms is None and manifest.default_budget_ms is not None:
            budget_ms = default_budget_ms(manifest.default_budget_ms, built_on, frontier)
        config = ControllerConfig(window=settings.window)
        self.feedback = Feedback(self.num_exits)
        self._uncounted: list[tuple[Prediction, float]] = []  # under the global budget
        self.measure: Measure = settings.measure
        self._controllers: dict[Measure, BudgetController] = {
            "compute": BudgetController(frontier, budget_ms, config),
            "end_to_end": BudgetController(frontier, budget_ms, config),
        }
        self.engine = Engine(
            backend,
            policy,
            self.controller.parameter,
            workers=settings.workers_on(backend.device),
            max_batch=self._batch_within(budget_ms),
            metrics=self._metrics,
            on_batch=self._on_batch,
            on_audit=self.auditor.note,
            costs=self._costs,
            clock=clock,
        )
        self._entrance = Entrance(
            self._decode, decode_pool, self.engine, self.auditor, self._metrics.cancelled
        )
        self._metrics.show_policy(self.version, policy.kind, backend.device)

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
        self, load: Load, options: Options, received_s: float, request_id: str
    ) -> Served:
        """Answer one sample.

        Args:
            load: Gives the image's bytes or the text; small ones are decoded at once, others on a
                decode thread.
            options: The request's.
            received_s: When its headers came, on the model's clock.
            request_id: Of the request, and the sample's place where that holds a list.

        Raises:
            ServeError: If the input is bad, the deadline passes before the first exit, or the
                network fails.
        """
        own = (
            None if options.budget_ms is None else self.controller.parameter_for(options.budget_ms)
        )
        deadline_s = None if options.deadline_ms is None else received_s + options.deadline_ms / 1e3
        wishes = Wishes(own, deadline_s, options.priority, options.trace)
        answer, total_ms, decoded = await self._entrance.let_through(
            load, wishes, received_s, request_id
        )
        prepared, decode_ms = decoded
        mask = None
        if self.task == "segmentation" and prepared.size is not None:
            mask = await self._loop.run_in_executor(
                self._decode_pool, mask_png, answer.said.logits, prepared.size
            )
            total_ms = (self.clock() - received_s) * 1e3
        return Served(answer, decode_ms, total_ms, prepared.truncated, mask)

    def set_budget(self, *, budget_ms: float | None, measure: Measure) -> None:
        """Set what the budget is and which latency it is about; the windows stay."""
        self.flush_samples()
        self.measure = measure
        for controller in self._controllers.values():
            controller.set_budget(budget_ms)
        self.engine.parameter = self.controller.parameter
        self.engine.max_batch = self._batch_within(budget_ms)
        log.info("%s: budget %s ms of %s latency", self.name, budget_ms, measure)

    def reload_scheduler(self) -> CalibratedPolicy:
        """The scheduler that the bundle's folder holds now, tried out; any thread, blocks.

        Raises:
            ValueError: If the folder holds none that this network can run under.
        """
        bundle, scheduler = reload(self._scheduler.bundle)
        try_policy(self.engine.backend, scheduler.policy, self._decode.example)
        return calibrate_to_host(bundle, scheduler, self._costs)

    def activate_scheduler(self, fresh: CalibratedPolicy) -> None:
        """Go on with another scheduler: rows that enter from now on; budget and windows stay."""
        self.flush_samples()
        self._scheduler = fresh
        self.auditor.restart()
        self.quality, self._floor_parameter = AgreementGuard(fresh, self._agreement_target), None
        for controller in self._controllers.values():
            controller.set_frontier(fresh.frontier)
        self.engine.active_policy = ActivePolicy(fresh.policy, self.controller.parameter)
        self._metrics.show_policy(self.version, fresh.policy.kind, self.engine.backend.device)
        log.info("%s: scheduler %s (%s)", self.name, fresh.policy.kind, fresh.sha256)

    def note_feedback(self, answered: LoggedPrediction, class_id: int) -> None:
        """Take in the true label of an answer of this model."""
        self.auditor.log.label(answered.key, class_id)
        if self.feedback.add(answered, class_id):
            self._metrics.feedback_samples[answered.exit].inc()

    def _batch_within(self, budget_ms: float | None) -> int:
        """Most rows of a batch: a larger one would leave no exit within the budget."""
        if budget_ms is None:
            return self._max_batch
        return self._costs.rows_within(budget_ms, self._max_batch)

    def refresh(self) -> None:
        """Count what is uncounted, forget what is too old and refresh the gauges."""
        self.flush_samples()
        for controller in self._controllers.values():
            controller.expire(self.clock())
        self._hold()
        thresholds = self.engine.policy.thresholds(self.controller.parameter)
        shared = None if thresholds is None else thresholds.tolist()
        self._metrics.show_control(self.controller, shared)
        self.auditor.show()
        self._metrics.show_feedback(self.feedback.tallies)
        self._metrics.show_quality(
            self.quality.drift.psi(), self.quality.violated_objective(self.controller)
        )
        self._metrics.show_queues(self.engine.queue_depths, self.engine.oldest_wait_s())

    def _hold(self) -> None:
        """Keep the agreement floor, if one was asked for, by what the audit has shown by now."""
        self.quality.read(self.auditor.log)
        held = self.quality.minimum_parameter(self.controller)
        if held != self._floor_parameter:
            self._floor_parameter = held
            for controller in self._controllers.values():
                controller.set_floor(held)
            self.engine.parameter = self.controller.parameter

    async def probe(self) -> None:
        """After a failed batch run the warm-up input: the model is broken if that fails too."""
        if not self.engine.failed:
            return
        tag = Request(self._loop.create_future(), self.clock(), controlled=False)
        self.engine.submit([InferenceRequest(self._decode.example, tag, priority=0)])
        try:
            await tag.future
        except ServeError:
            self.broken = f"{self.name} fails on every input; see the log and restart"
        else:
            self.broken, self.engine.failed = None, False

    def _on_batch(self, completions: list[Completion]) -> None:
        """Worker thread: hand a batch's completions to the loop in one call."""
        self._loop.call_soon_threadsafe(self._deliver, completions, self.clock())

    def _deliver(self, completions: list[Completion], done_s: float) -> None:
        """Loop: answer the waiting requests and tell the controllers."""
        now = self.clock()
        self.engine.deadlines.note_delivery(now - done_s, now)
        answered: list[tuple[Request, Prediction, float]] = []
        for row, outcome in completions:
            request = row.tag
            assert isinstance(request, Request), "rows of this engine come from predict and probe"
            total_ms = (now - request.received_s) * 1e3
            if isinstance(outcome, Prediction):
                if row.deadline_s is not None and now >= row.deadline_s:
                    outcome = outcome._replace(late=True)
                answered.append((request, outcome, total_ms))
            if request.future.done():
                continue
            if isinstance(outcome, Prediction):
                request.future.set_result((outcome, total_ms))
            else:
                request.future.set_exception(outcome)
        for request, answer, total_ms in answered:
            decode_ms = None if request.decoded is None else request.decoded.decode_ms
            latency = AnswerLatency(total_ms, answer.compute_ms, answer.queue_ms, decode_ms)
            self._metrics.note_answer(answer.exit, latency)
            if request.controlled:
                self._uncounted.append((answer, total_ms))
        if len(self._uncounted) >= COUNT_SAMPLES:
            self.flush_samples()

    def flush_samples(self) -> None:
        """Count what was answered since the last time, and tell the controllers."""
        answered, self._uncounted = self._uncounted, []
        now = self.clock()
        compute = [Sample(answer.exit, answer.compute_ms, 0.0) for answer, _ in answered]
        end_to_end = [
            Sample(answer.exit, total_ms, max(total_ms - answer.compute_ms, 0.0), answer.queue_ms)
            for answer, total_ms in answered
        ]
        self._controllers["compute"].observe(compute, now)
        self._controllers["end_to_end"].observe(end_to_end, now)
        self.engine.parameter = self.controller.parameter
        self._metrics.flush()
        self.auditor.flush()
        for note in self._metrics.take_scores():
            self.quality.drift.add(*note)
