"""A bundle being served, as control sees it: its budget and the quality of its answers."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from models.bundle import Bundle, Precision
from scheduler.control.controller import BudgetController, ControllerConfig, Sample
from scheduler.fitted import Scheduler
from scheduler.policy import ExitPolicy
from server.engine.warmup import budget_on_host_ms
from server.loading import CalibratedPolicy, calibrate_to_host, read_scheduler, reload
from server.metrics import Metrics, ModelMetrics
from server.quality.agreement_floor import AgreementGuard, AgreementTarget
from server.quality.audit_log import AuditLog
from server.quality.auditor import AuditJournal
from server.quality.feedback import Feedback, LoggedPrediction, PredictionLog
from server.reports import Answers, EntryTerms, RunnerFacts, Work
from server.settings import Settings

log = logging.getLogger(__name__)

Measure = Literal["compute", "end_to_end"]


class Engines(Protocol):
    """The engines that run one model, wherever they are."""

    def set_parameter(self, parameter: float, queued: Sequence[float] = ()) -> None:
        """Move the policy's parameter; arguments as of `ActivePolicy.set`."""

    def set_max_batch(self, rows: int) -> None:
        """Set the most rows of a batch."""

    async def try_scheduler(self, scheduler: Scheduler) -> None:
        """Run one row under another policy.

        Raises:
            ValueError: If that fails.
        """

    def activate(self, scheduler: Scheduler, policy_version: int, parameter: float) -> None:
        """Switch requests that enter from now on to another policy."""

    @property
    def fault(self) -> str | None:
        """Why none of them can answer; None while one works."""

    @property
    def stall(self) -> str | None:
        """Why they should be restarted; None while one makes progress."""


class ModelControl:
    """Keeps one model's budget, and books what fronts and engines report. For one thread.

    Args:
        bundle: A verified bundle.
        settings: The server's.
        metrics: The server's.
        prediction_log: Remembers answers, so that true labels can come for them.
        facts: What an engine found out about the network on this host.
        engines: Those that run it.
        set_terms: Called with new terms under which requests enter.
        clock: Seconds, monotonic.

    Raises:
        ValueError: If the scheduler cannot be read or does not fit the network.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: Settings,
        metrics: Metrics,
        prediction_log: PredictionLog,
        facts: RunnerFacts,
        engines: Engines,
        set_terms: Callable[[EntryTerms], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        manifest = bundle.manifest
        self.name, self.version, self.classes = manifest.name, manifest.version, manifest.classes
        self.task, self.num_exits = manifest.task, manifest.num_exits
        self.clock = clock
        self.engines = engines
        self._facts, self._set_terms = facts, set_terms
        self._prediction_log = prediction_log
        self._metrics = ModelMetrics(metrics, self.name, self.num_exits)
        self.feedback = Feedback(self.num_exits)
        variant = bundle.variant(facts.precision)
        scheduler = read_scheduler(variant)
        costs_ms = facts.costs.costs_ms.round(3).tolist()
        log.info("%s costs %s ms until each exit on this host", self.name, costs_ms)
        self._max_batch = settings.max_batch or facts.costs.worthwhile_rows()
        self._scheduler = calibrate_to_host(variant, scheduler, facts.costs)
        self._policy_version = 0
        self.audits = AuditJournal(
            AuditLog(self.num_exits),
            self._metrics.audit,
            settings.audit_share,
            self._scheduler.combiner,
        )
        self._agreement_target = AgreementTarget(settings.min_agreement, settings.prefer)
        self.quality = AgreementGuard(self._scheduler, self._agreement_target)
        self._floor_parameter: float | None = None
        budget_ms = settings.budget_ms
        if budget_ms is None:
            budget_ms = budget_on_host_ms(
                variant.entry.default_budget_ms, scheduler.frontier, self._scheduler.frontier
            )
        self.measure: Measure = settings.measure
        self._controllers = _controllers(self._scheduler, budget_ms, settings.window)
        self.engines.set_max_batch(self._batch_within(budget_ms))
        self._apply()
        self._show_policy()

    @property
    def precision(self) -> Precision:
        """The precision that the network computes in."""
        return self._facts.precision

    @property
    def folder(self) -> Path:
        """The folder of the bundle."""
        return self._scheduler.variant.bundle.folder

    @property
    def policy(self) -> ExitPolicy:
        """The policy that requests enter under."""
        return self._scheduler.policy

    @property
    def controller(self) -> BudgetController:
        """The controller in command."""
        return self._controllers[self.measure]

    def set_budget(self, *, budget_ms: float | None, measure: Measure) -> None:
        """Set the budget and the latency it bounds; the windows stay."""
        self.measure = measure
        for controller in self._controllers.values():
            controller.set_budget(budget_ms)
        self._apply()
        self.engines.set_max_batch(self._batch_within(budget_ms))
        shown = (
            "no budget" if budget_ms is None else f"budget {budget_ms:g} ms of {measure} latency"
        )
        log.info("%s: %s", self.name, shown)

    async def reload_scheduler(self) -> "FreshScheduler":
        """Read and try the scheduler that the bundle's folder holds now.

        Raises:
            ValueError: If the folder holds none that this network can run under.
        """
        variant, scheduler = await asyncio.to_thread(reload, self._scheduler.variant)
        await self.engines.try_scheduler(scheduler)
        calibrated = await asyncio.to_thread(
            calibrate_to_host, variant, scheduler, self._facts.costs
        )
        return FreshScheduler(scheduler, calibrated)

    def activate_scheduler(self, fresh: "FreshScheduler") -> None:
        """Switch requests that enter from now on to another scheduler; budget and windows stay."""
        self._scheduler = fresh.calibrated
        self._policy_version += 1
        self.audits.restart(self._policy_version, self._scheduler.combiner)
        self.quality = AgreementGuard(self._scheduler, self._agreement_target)
        self._floor_parameter = None
        for controller in self._controllers.values():
            controller.set_frontier(self._scheduler.frontier)
        self.engines.activate(fresh.scheduler, self._policy_version, self.controller.parameter)
        self._apply()
        self._show_policy()
        log.info("%s: scheduler %s (%s)", self.name, self.policy.kind, self._scheduler.sha256)

    def _show_policy(self) -> None:
        self._metrics.show_policy(
            self.version, self.policy.kind, self._facts.device, self.precision
        )

    def _apply(self) -> None:
        """Let engines and fronts follow the controller in command."""
        controller = self.controller
        queued = controller.queued_parameters if self.measure == "end_to_end" else ()
        self.engines.set_parameter(controller.parameter, queued)
        frontier, present = controller.frontier, controller.present
        self._set_terms(
            EntryTerms(
                self._policy_version,
                frontier.parameters,
                frontier.expected_costs_ms,
                present.slowdown,
                present.overhead_ms,
            )
        )

    def note_feedback(self, answered: LoggedPrediction, class_id: int) -> None:
        """Record the true label of one of this model's answers."""
        self.audits.log.label(answered.key, class_id)
        if self.feedback.add(answered, class_id):
            self._metrics.feedback_samples[answered.exit].inc()

    def _batch_within(self, budget_ms: float | None) -> int:
        """Return the largest batch that leaves an exit within the budget."""
        if budget_ms is None:
            return self._max_batch
        return self._facts.costs.rows_within(budget_ms, self._max_batch)

    def refresh(self) -> None:
        """Forget what is too old, and set the gauges."""
        moved = [each.expire(self.clock()) for each in self._controllers.values()]
        if any(moved):
            self._apply()
        self._keep_agreement_floor()
        thresholds = self.policy.thresholds(self.controller.parameter)
        shared = None if thresholds is None else thresholds.tolist()
        self._metrics.show_control(self.controller, shared)
        self.audits.show()
        self._metrics.show_feedback([count.accuracy for count in self.feedback.tallies])
        violated = self.quality.violated_objective(self.controller)
        self._metrics.show_quality(self.quality.drift.psi(), violated)

    def show_queues(self, depths: Sequence[int], oldest_wait_s: float) -> None:
        """Set the gauges of the requests that wait."""
        self._metrics.show_queues(depths, oldest_wait_s)

    def _keep_agreement_floor(self) -> None:
        """Apply the agreement floor, if one was asked for, as far as the audits bear it out."""
        self.quality.read(self.audits.log)
        floor = self.quality.minimum_parameter(self.controller)
        if floor != self._floor_parameter:
            self._floor_parameter = floor
            for controller in self._controllers.values():
                controller.set_floor(floor)
            self._apply()

    def note_answers(self, answers: Answers) -> None:
        """Count answered requests, remember them, and report them to the controllers."""
        self._metrics.count_answers(answers)
        remembered = zip(
            answers.keys.tolist(), answers.exits.tolist(), answers.class_ids.tolist(), strict=True
        )
        for key, exit, class_id in remembered:
            if key:
                self._prediction_log.record(key, self.name, exit, class_id)
        now_s = self.clock()
        compute, end_to_end = _samples(answers)
        self._controllers["compute"].observe(compute, now_s)
        self._controllers["end_to_end"].observe(end_to_end, now_s)
        self._apply()

    def note_work(self, work: Work) -> None:
        """Count what an engine did."""
        self._metrics.count_work(work)
        self.audits.record(work.audits, work.audits_skipped)
        for exit, scores, parameter in work.scores:
            self.quality.drift.add(exit, scores, parameter)

    def note_cancelled(self, count: int) -> None:
        """Count requests whose clients left before an engine had them."""
        self._metrics.count_cancelled(count)


class FreshScheduler(NamedTuple):
    """A scheduler that was read again, as engines and as control need it."""

    scheduler: Scheduler
    calibrated: CalibratedPolicy


def _samples(answers: Answers) -> tuple[list[Sample], list[Sample]]:
    """Return the samples that count for a budget of compute and of end-to-end latency."""
    counted = answers.counts_for_budget
    exits, compute_ms = answers.exits[counted].tolist(), answers.compute_ms[counted].tolist()
    total_ms, queue_ms = answers.total_ms[counted].tolist(), answers.queue_ms[counted].tolist()
    compute = [Sample(exit, ms, 0.0) for exit, ms in zip(exits, compute_ms, strict=True)]
    end_to_end = [
        Sample(exit, total, max(total - own, 0.0), queue)
        for exit, own, total, queue in zip(exits, compute_ms, total_ms, queue_ms, strict=True)
    ]
    return compute, end_to_end


def _controllers(
    scheduler: CalibratedPolicy, budget_ms: float | None, window: int
) -> dict[Measure, BudgetController]:
    """Make one controller per measure: both follow all samples, so that either can take over."""
    config = ControllerConfig(window=window)
    return {
        "compute": BudgetController(scheduler.frontier, budget_ms, config),
        "end_to_end": BudgetController(scheduler.frontier, budget_ms, config),
    }
