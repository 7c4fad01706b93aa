"""A bundle being served: its life cycle, its budget and the quality of its answers."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Literal

from models.bundle import Bundle, Precision
from models.postprocess import probabilities
from scheduler.control.controller import BudgetController, ControllerConfig, Sample
from server.dispatch import Dispatcher
from server.engine.active_policy import ActivePolicy
from server.engine.engine import Engine
from server.engine.request import InferenceRequest, Prediction
from server.engine.warmup import budget_on_host_ms, measure_costs, try_policy
from server.errors import ServeError
from server.loading import (
    CalibratedPolicy,
    calibrate_to_host,
    open_served,
    read_scheduler,
    reload,
)
from server.metrics import Metrics, ModelMetrics
from server.quality.agreement_floor import AgreementGuard, AgreementTarget
from server.quality.audit_log import AuditLog
from server.quality.auditor import Auditor
from server.quality.feedback import Feedback, LoggedPrediction, PredictionLog
from server.settings import Settings

log = logging.getLogger(__name__)

Modality = Literal["image", "text"]
Measure = Literal["compute", "end_to_end"]


class ServedModel:
    """One bundle being served. All methods but the constructor belong to the event loop's thread.

    The constructor loads, warms up and measures what each exit costs on this host; `start` and
    `stop` bracket serving. Requests go through `dispatcher`.

    Args:
        bundle: A verified bundle.
        settings: The server's.
        metrics: The app's.
        decode_pool: Threads that turn bytes into arrays.
        prediction_log: Remembers answers, so that true labels can come for them.
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
        prediction_log: PredictionLog,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        manifest = bundle.manifest
        self.name, self.version, self.classes = manifest.name, manifest.version, manifest.classes
        self.task, self.num_exits = manifest.task, manifest.num_exits
        self.reads: Modality = "text" if manifest.task == "text" else "image"
        self.broken: str | None = None
        self.clock = clock
        self._prediction_log = prediction_log
        self._metrics = ModelMetrics(metrics, self.name, self.num_exits)
        self.auditor = Auditor(
            AuditLog(self.num_exits),
            self._metrics.audit,
            share=settings.audit_share,
            rng=random.Random(0),
        )
        self.dispatcher = Dispatcher(
            bundle.preprocessor(settings.max_pixels),
            decode_pool,
            auditor=self.auditor,
            observer=self._metrics,
            parameter_for=lambda budget_ms: self.controller.parameter_for(budget_ms),
            on_answered=self._account,
            clock=clock,
        )
        example = self.dispatcher.example
        variant, backend = open_served(bundle, settings, example)
        scheduler = read_scheduler(variant)
        policy = scheduler.policy
        self._costs = measure_costs(backend, policy, example, settings.max_batch)
        costs_ms = self._costs.costs_ms.round(3).tolist()
        log.info("%s costs %s ms until each exit on this host", self.name, costs_ms)
        self._max_batch = settings.max_batch or self._costs.worthwhile_rows()
        self._scheduler = calibrate_to_host(variant, scheduler, self._costs)
        self._agreement_target = AgreementTarget(settings.min_agreement, settings.prefer)
        self.quality = AgreementGuard(self._scheduler, self._agreement_target)
        self._floor_parameter: float | None = None
        budget_ms = settings.budget_ms
        if budget_ms is None:
            budget_ms = budget_on_host_ms(
                variant.entry.default_budget_ms, scheduler.frontier, self._scheduler.frontier
            )
        self.feedback = Feedback(self.num_exits)
        self.measure: Measure = settings.measure
        self._controllers = _controllers(self._scheduler, budget_ms, settings.window)
        self.engine = Engine(
            backend,
            policy,
            self.controller.parameter,
            workers=settings.workers_on(backend.device),
            max_batch=self._batch_within(budget_ms),
            on_done=self.dispatcher.on_done,
            on_audit=self.auditor.note,
            observer=self._metrics,
            costs=self._costs,
            clock=clock,
        )
        self._show_policy()

    @property
    def precision(self) -> Precision:
        """The precision that the network computes in."""
        return self._scheduler.variant.precision

    @property
    def controller(self) -> BudgetController:
        """The controller in command."""
        return self._controllers[self.measure]

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the engine; results go to this loop."""
        self.dispatcher.start(self.engine, loop)
        self.engine.start()

    def stop(self) -> None:
        """Answer the requests that are in, then end the workers; blocks."""
        self.engine.stop()

    def set_budget(self, *, budget_ms: float | None, measure: Measure) -> None:
        """Set the budget and the latency it bounds; the windows stay."""
        self.flush_samples()
        self.measure = measure
        for controller in self._controllers.values():
            controller.set_budget(budget_ms)
        self.engine.parameter = self.controller.parameter
        self.engine.max_batch = self._batch_within(budget_ms)
        shown = (
            "no budget" if budget_ms is None else f"budget {budget_ms:g} ms of {measure} latency"
        )
        log.info("%s: %s", self.name, shown)

    def reload_scheduler(self) -> CalibratedPolicy:
        """Read and try the scheduler that the bundle's folder holds now; any thread, blocks.

        Raises:
            ValueError: If the folder holds none that this network can run under.
        """
        variant, scheduler = reload(self._scheduler.variant)
        try_policy(self.engine.backend, scheduler.policy, self.dispatcher.example)
        return calibrate_to_host(variant, scheduler, self._costs)

    def activate_scheduler(self, fresh: CalibratedPolicy) -> None:
        """Switch requests that enter from now on to another scheduler; budget and windows stay."""
        self.flush_samples()
        self._scheduler = fresh
        self.auditor.restart()
        self.quality = AgreementGuard(fresh, self._agreement_target)
        self._floor_parameter = None
        for controller in self._controllers.values():
            controller.set_frontier(fresh.frontier)
        self.engine.active_policy = ActivePolicy(fresh.policy, self.controller.parameter)
        self._show_policy()
        log.info("%s: scheduler %s (%s)", self.name, fresh.policy.kind, fresh.sha256)

    def _show_policy(self) -> None:
        kind, device = self._scheduler.policy.kind, self.engine.backend.device
        self._metrics.show_policy(self.version, kind, device, self.precision)

    def note_feedback(self, answered: LoggedPrediction, class_id: int) -> None:
        """Record the true label of one of this model's answers."""
        self.auditor.log.label(answered.key, class_id)
        if self.feedback.add(answered, class_id):
            self._metrics.feedback_samples[answered.exit].inc()

    def _batch_within(self, budget_ms: float | None) -> int:
        """Return the largest batch that leaves an exit within the budget."""
        if budget_ms is None:
            return self._max_batch
        return self._costs.rows_within(budget_ms, self._max_batch)

    def refresh(self) -> None:
        """Account for what is pending, forget what is too old, and set the gauges."""
        self.flush_samples()
        for controller in self._controllers.values():
            controller.expire(self.clock())
        self._keep_agreement_floor()
        thresholds = self.engine.policy.thresholds(self.controller.parameter)
        shared = None if thresholds is None else thresholds.tolist()
        self._metrics.show_control(self.controller, shared)
        self.auditor.show()
        self._metrics.show_feedback([count.accuracy for count in self.feedback.tallies])
        violated = self.quality.violated_objective(self.controller)
        self._metrics.show_quality(self.quality.drift.psi(), violated)
        self._metrics.show_queues(self.engine.queue_depths, self.engine.oldest_wait_s())

    def _keep_agreement_floor(self) -> None:
        """Apply the agreement floor, if one was asked for, as far as the audits bear it out."""
        self.quality.read(self.auditor.log)
        floor = self.quality.minimum_parameter(self.controller)
        if floor != self._floor_parameter:
            self._floor_parameter = floor
            for controller in self._controllers.values():
                controller.set_floor(floor)
            self.engine.parameter = self.controller.parameter

    async def probe(self) -> None:
        """After a failed batch run the warm-up input: the model is broken if that fails too."""
        if not self.engine.failed:
            return
        request = InferenceRequest(
            self.dispatcher.example, priority=0, received_s=self.clock(), counts_for_budget=False
        )
        await self.dispatcher.submit(request)
        if isinstance(request.result, ServeError):
            self.broken = f"{self.name} fails on every input; see the log and restart"
        else:
            self.broken, self.engine.failed = None, False

    def flush_samples(self) -> None:
        """Account for every request answered until now."""
        self._account(self.dispatcher.take_answered())

    def _account(self, answered: list[InferenceRequest]) -> None:
        """Count answered requests, remember them, and report them to the controllers."""
        now = self.clock()
        compute, end_to_end = [], []
        for request in answered:
            prediction, total_ms = request.result, request.total_ms
            assert isinstance(prediction, Prediction), "answered requests have predictions"
            if request.request_id is not None:
                class_id = int(probabilities(prediction.output.log_probs).argmax())
                self._prediction_log.record(
                    request.request_id, self.name, prediction.exit, class_id
                )
            if request.counts_for_budget:
                other_ms = max(total_ms - prediction.compute_ms, 0.0)
                compute.append(Sample(prediction.exit, prediction.compute_ms, 0.0))
                end_to_end.append(Sample(prediction.exit, total_ms, other_ms, prediction.queue_ms))
        self._controllers["compute"].observe(compute, now)
        self._controllers["end_to_end"].observe(end_to_end, now)
        self.engine.parameter = self.controller.parameter
        self._metrics.flush(answered)
        self.auditor.flush()
        for exit, scores, parameter in self._metrics.take_scores():
            self.quality.drift.add(exit, scores, parameter)


def _controllers(
    scheduler: CalibratedPolicy, budget_ms: float | None, window: int
) -> dict[Measure, BudgetController]:
    """Make one controller per measure: both follow all samples, so that either can take over."""
    config = ControllerConfig(window=window)
    return {
        "compute": BudgetController(scheduler.frontier, budget_ms, config),
        "end_to_end": BudgetController(scheduler.frontier, budget_ms, config),
    }
