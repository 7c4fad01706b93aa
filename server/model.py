"""A bundle being served, as control sees it: its budget and the quality of its answers."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

from models.bundle import Bundle, Precision
from scheduler.control.controller import BudgetController, ControllerConfig
from scheduler.policy import ExitPolicy
from server.engines import Engines
from server.loading import (
    CalibratedPolicy,
    ServedSchedulers,
    calibrate_to_host,
    read_schedulers,
    reload,
)
from server.metrics import Metrics, ModelMetrics
from server.promise import PromiseKeeper
from server.quality.agreement_floor import AgreementGuard, AgreementTarget
from server.quality.audit_log import AuditLog
from server.quality.auditor import AuditJournal
from server.quality.feedback import Feedback, LoggedPrediction, PredictionLog
from server.reports import Answers, EntryTerms, RunnerFacts, Work
from server.settings import Settings
from server.statistics import InferenceStatistics

log = logging.getLogger(__name__)

Measure = Literal["compute", "end_to_end"]


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
        predecessor: Another version, whose budget and promise hold here too; None: those of the
            settings.
        number: Tells it from those that had its name and version before.

    Raises:
        ValueError: If the scheduler cannot be read or does not fit the network.

    Attributes:
        key: Names this model among all that were ever loaded.
        shown_version: Its version in answers to operators; None: the server has one of each model.
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
        predecessor: "ModelControl | None" = None,
        number: int = 0,
    ) -> None:
        manifest = bundle.manifest
        self.name, self.version, self.classes = manifest.name, manifest.version, manifest.classes
        self.task, self.num_exits = manifest.task, manifest.num_exits
        self.input = manifest.input
        self.statistics = InferenceStatistics()
        self.has_label_sets = manifest.thresholds is not None
        self.shown_version = self.version if metrics.by_version else None
        self.key = f"{self.name}@{self.version}#{number}"
        self.clock = clock
        self.engines = engines
        self._facts, self._set_terms = facts, set_terms
        self._prediction_log = prediction_log
        self.feedback = Feedback(self.num_exits)
        variant, self._policy_name = bundle.variant(facts.precision), settings.policy
        fitted = read_schedulers(variant, settings.policy)
        schedulers = calibrate_to_host(variant, fitted, facts.costs)
        costs_ms = facts.costs.costs_ms.round(3).tolist()
        log.info("%s costs %s ms until each exit on this host", self.name, costs_ms)
        self._max_batch = settings.max_batch or facts.costs.worthwhile_rows()
        self.promise = PromiseKeeper(
            schedulers,
            settings.max_disagreement,
            settings.confidence,
            audits=settings.audit_share > 0,
        )
        self._metrics = ModelMetrics(metrics, self.name, self.version, self.num_exits)
        self.scheduler = schedulers.chosen  # as engines do when they start
        self._policy_version = 0
        self.audits = AuditJournal(
            AuditLog(self.num_exits, label_sets=self.has_label_sets),
            self._metrics.audit,
            settings.audit_share,
            self.scheduler.combiner,
        )
        self._agreement_target = AgreementTarget(settings.min_agreement, settings.prefer)
        self.quality = AgreementGuard(self.scheduler, self._agreement_target)
        self._floor_parameter: float | None = None
        self.measure: Measure = settings.measure
        config = ControllerConfig(window=settings.window)
        # Both follow all samples, so that either can take over.
        self._controllers: dict[Measure, BudgetController] = {
            measure: BudgetController(self.scheduler.frontier, None, config)
            for measure in get_args(Measure)
        }
        self._show_policy()
        if predecessor is None:
            self.set_budget(budget_ms=settings.budget_ms, measure=settings.measure)
        else:
            self.set_budget(
                budget_ms=predecessor.controller.budget_ms,
                measure=predecessor.measure,
                max_disagreement=predecessor.promise.max_disagreement,
            )

    def close(self, successor: "ModelControl | None" = None) -> None:
        """Take the metrics of a model that has been unloaded away.

        Args:
            successor: The model of the same name and version that serves in its place.
        """
        self._metrics.remove(is_replaced=successor is not None)
        if successor is not None:
            successor._show_policy()

    @property
    def precision(self) -> Precision:
        """The precision that the network computes in."""
        return self._facts.precision

    @property
    def device(self) -> str:
        """The device that it runs on."""
        return self._facts.device

    @property
    def folder(self) -> Path:
        """The folder of the bundle."""
        return self.scheduler.variant.bundle.folder

    @property
    def policy(self) -> ExitPolicy:
        """Its policy."""
        return self.scheduler.policy

    @property
    def controller(self) -> BudgetController:
        """The controller in command."""
        return self._controllers[self.measure]

    def set_budget(
        self,
        *,
        budget_ms: float | None,
        measure: Measure,
        max_disagreement: float | None = None,
    ) -> None:
        """Set the budget, the latency it bounds, and what holds without one; the windows stay.

        Args:
            budget_ms: The budget; None: the promise about answers is in command.
            measure: The latency that a budget bounds.
            max_disagreement: That promise; None: it stays.
        """
        self.measure = measure
        if max_disagreement is not None:
            self.promise.set_max_disagreement(max_disagreement)
        for controller in self._controllers.values():
            controller.set_budget(budget_ms)
        self._keep_promise()
        rows = self._max_batch
        if budget_ms is not None:  # so that the largest batch leaves an exit within it
            rows = self._facts.costs.rows_within(budget_ms, rows)
        self.engines.set_max_batch(rows)
        self._log_promise()

    @property
    def summary(self) -> str:
        """One sentence about the promise in force: what it keeps and what it costs."""
        return self.promise.summary(self.controller, self.measure)

    async def reload_schedulers(self, policy: str | None) -> ServedSchedulers:
        """Read and try the schedulers that the bundle's folder holds now.

        Args:
            policy: The one that serves under a budget; None: the one that the operator named last,
                or else the one that the bundle names.

        Raises:
            ValueError: If the folder holds none that this network can run under.
        """
        named = policy or self._policy_name
        variant, schedulers = await asyncio.to_thread(reload, self.scheduler.variant, named)
        for scheduler in schedulers.values():
            await self.engines.try_scheduler(scheduler)
        return await asyncio.to_thread(calibrate_to_host, variant, schedulers, self._facts.costs)

    def use_schedulers(self, fresh: ServedSchedulers, policy: str | None) -> None:
        """Switch requests that enter from now on to other schedulers; budget and windows stay.

        Args:
            fresh: From `reload_schedulers`.
            policy: As there.
        """
        self._policy_name = policy or self._policy_name
        self.promise.use(fresh)
        self._keep_promise()

    def _keep_promise(self) -> None:
        """Serve by the scheduler and the parameter that budget or promise call for."""
        budget_ms = self.controller.budget_ms
        scheduler = self.promise.scheduler(budget_ms)
        is_new = scheduler is not self.scheduler
        if is_new:
            self._take_up(scheduler)
        for controller in self._controllers.values():
            controller.hold(self.promise.parameter(budget_ms))
        if is_new:
            parameter = self.controller.parameter
            self.engines.activate(scheduler.scheduler, self._policy_version, parameter)
        self._apply()

    def _take_up(self, scheduler: CalibratedPolicy) -> None:
        self.scheduler = scheduler
        self._policy_version += 1
        self.audits.restart(self._policy_version, scheduler.combiner)
        self.quality = AgreementGuard(scheduler, self._agreement_target)
        self._floor_parameter = None
        for controller in self._controllers.values():
            controller.set_frontier(scheduler.frontier)
        self._show_policy()
        log.info("%s: scheduler %s (%s)", self.name, scheduler.shown_name, scheduler.sha256)

    def _show_policy(self) -> None:
        self._metrics.show_policy(self.scheduler.shown_name, self._facts.device, self.precision)

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
                self.promise.renews(controller.budget_ms),
            )
        )

    def note_feedback(self, answered: LoggedPrediction, class_id: int) -> None:
        """Record the true label of one of this model's answers."""
        self.audits.log.label(answered.key, class_id)
        if self.feedback.add(answered, class_id):
            self._metrics.feedback_samples[answered.exit].inc()

    def refresh(self) -> None:
        """Forget what is too old, and set the gauges."""
        moved = [each.expire(self.clock()) for each in self._controllers.values()]
        if any(moved):
            self._apply()
        self._keep_agreement_floor()
        self._review_promise()
        thresholds = self.policy.thresholds(self.controller.parameter)
        shared = None if thresholds is None else thresholds.tolist()
        self._metrics.show_control(self.controller, shared)
        self.audits.show()
        self._metrics.show_feedback([count.accuracy for count in self.feedback.tallies])
        violated = self.quality.violated_objective(self.controller)
        self._metrics.show_quality(self.quality.drift.psi(), violated)
        budget_ms = self.controller.budget_ms
        self._metrics.show_promise(
            self.promise.kind(budget_ms),
            self.promise.certified(budget_ms),
            withdrawn=self.promise.is_withdrawn(budget_ms),
        )

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

    def _review_promise(self) -> None:
        """Withdraw or renew the certificate by what was audited, and serve accordingly."""
        budget_ms = self.controller.budget_ms
        before = self.promise.parameter(budget_ms)
        self.promise.review(self.quality.drift.psi())
        if self.promise.parameter(budget_ms) != before:
            self._keep_promise()
            self._log_promise()

    def _log_promise(self) -> None:
        shortfall = self.promise.shortfall(self.controller.budget_ms)
        if shortfall is not None:
            log.warning("%s: %s", self.name, shortfall)
        log.info("%s: %s", self.name, self.summary)

    def note_answers(self, answers: Answers) -> None:
        """Count answered requests, remember them, and report them to the controllers."""
        self._metrics.count_answers(answers)
        self.statistics.note_answers(answers)
        remembered = zip(
            answers.keys.tolist(), answers.exits.tolist(), answers.class_ids.tolist(), strict=True
        )
        for key, exit, class_id in remembered:
            if key:
                self._prediction_log.record(key, self.key, exit, class_id)
        now_s = self.clock()
        self._controllers["compute"].observe(answers.compute_samples(), now_s)
        self._controllers["end_to_end"].observe(answers.end_to_end_samples(), now_s)
        self._apply()

    def note_work(self, work: Work) -> None:
        """Count what an engine did."""
        self._metrics.count_work(work)
        self.statistics.note_work(work)
        self.audits.record(
            work.audits, work.audits_skipped + work.audits_cancelled, work.audits_lost
        )
        self.promise.note_audits([each.log_probs for each in work.audits], work.audits_lost)
        for exit, scores, parameter in work.scores:
            self.quality.drift.add(exit, scores, parameter)

    def note_lost_audits(self, count: int) -> None:
        """Count samples that an engine was auditing when it died."""
        self.audits.record([], 0, count)
        self.promise.note_audits([], count)

    def note_cancelled(self, count: int) -> None:
        """Count requests whose clients left before an engine had them."""
        self._metrics.count_cancelled(count)
