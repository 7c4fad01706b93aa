"""Prometheus metrics: one registry an app, children looked up once."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.metrics import MetricWrapperBase

from scheduler.control.controller import BudgetController
from scheduler.guarantee import Certificate
from server.histogram import HistogramFamily
from server.process_metrics import ProcessName
from server.reports import Answers, Work

REPOSITORY: Final = "/v2/repository"
ROUTES: Final = (
    "/predict", "/predict/stream", "/budget", "/frontier", "/scheduler/reload", "/audit",
    "/audit/rows", "/feedback", "/metrics", "/livez", "/readyz", "/models", "/classify",
    "/v1/models", "/v1/models/{model}", "/v1/models/{model}:predict", "/v2", "/v2/health/live",
    "/v2/health/ready", "/v2/models/stats", "/v2/models/{model}", "/v2/models/{model}/ready",
    "/v2/models/{model}/infer", "/v2/models/{model}/stats", REPOSITORY, "other",
)  # fmt: skip
LATENCY_BUCKETS: Final = tuple(
    round(1e-4 * 10 ** (i / 6), 7) for i in range(31)
)  # 0.1 ms to 10 s, six a decade
BATCH_BUCKETS: Final = tuple(float(2**i) for i in range(11))
OBJECTIVES: Final = ("budget", "agreement")
PROMISES: Final = ("budget", "disagreement", "none")
SPAN_OUTCOMES: Final = ("exported", "lost")
REJECTIONS: Final = (
    "queue_full", "not_ready", "body_too_large", "bytes_full", "head_too_large", "url_too_long",
    "malformed", "method_not_allowed", "too_complex", "first_byte_timeout", "head_timeout",
    "body_timeout", "stalled", "answer_not_taken", "idle", "connections", "descriptors",
    "unauthorized", "forbidden", "image_pixels", "image_pixels_per_byte", "image_scans",
    "image_parts", "decode_timeout", "decode_crash", "decode_queue_full",
)  # fmt: skip


class Metrics:
    """Every metric family of the server.

    Args:
        registry: Where they are registered.
        version: Of this program.
        by_version: Whether series that belong to a model have the label `version` too, since the
            server may have several versions of one.
    """

    def __init__(
        self, registry: CollectorRegistry, version: str, *, by_version: bool = False
    ) -> None:
        self.registry, self.by_version = registry, by_version
        self.model_labels = ("model", "version") if by_version else ("model",)
        self.requests = Counter(
            "eenet_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self.predictions = Counter(
            "eenet_predictions",
            "Samples answered.",
            [*self.model_labels, "exit"],
            registry=registry,
        )
        self.rejected = Counter(
            "eenet_rejected", "Samples or requests turned away.", ["reason"], registry=registry
        )
        self.cancelled = Counter(
            "eenet_cancelled",
            "Samples dropped because their client had left.",
            self.model_labels,
            registry=registry,
        )
        self.inflight = Gauge(
            "eenet_inflight_samples", "Samples admitted and not yet answered.", registry=registry
        )
        self.loop_lag = Gauge(
            "eenet_event_loop_lag_seconds",
            "How late the latest beat of a process's event loop was.",
            ["role", "index"],
            registry=registry,
        )
        self.spans = Counter(
            "eenet_spans", "Spans of traces, by what became of them.", ["outcome"],
            registry=registry,
        )  # fmt: skip
        for outcome in SPAN_OUTCOMES:
            self.spans.labels(outcome)
        self.build_info = Gauge("eenet_build_info", "The program.", ["version"], registry=registry)
        self.build_info.labels(version).set(1)
        self.model_info = Gauge(
            "eenet_model_info",
            "A loaded model.",
            ["model", "version", "policy", "device", "precision"],
            registry=registry,
        )
        self._add_latencies()
        self._add_control()
        self._add_quality()
        self.restarts = Counter(
            "eenet_process_restarts",
            "Processes that were started in place of others that had ended.",
            ["role"],
            registry=registry,
        )
        self._shown_restarts: dict[str, int] = {}
        for reason in REJECTIONS:
            self.rejected.labels(reason)

    def _add_latencies(self) -> None:
        self.request_latency = self._latency(
            "request", "Headers received to answer ready, a sample."
        )
        self.compute_latency = self._latency(
            "compute", "Wall time of the batches a sample was in, summed over its stages."
        )
        self.queue_latency = self._latency("queue", "Waiting for a worker, a sample.")
        self.decode_latency = self._latency("decode", "Bytes to network input, a sample.")
        self.stage_latency = self._latency(
            "stage", "One batch through a stage, its head and the policy.", "stage"
        )
        self.batch_size = HistogramFamily(
            "eenet_batch_size",
            "Rows of one executed batch.",
            [*self.model_labels, "stage"],
            BATCH_BUCKETS,
            self.registry,
        )

    def _add_control(self) -> None:
        self.queue_depth = self._gauge("queue_depth", "Rows waiting before a stage.", "stage")
        self.queue_oldest = self._gauge(
            "queue_oldest_seconds", "Age of the row that has waited longest."
        )
        self.budget = self._gauge("budget_seconds", "The budget in force; NaN without one.")
        self.effective_budget = self._gauge(
            "effective_budget_seconds", "What the controller aims at; NaN without a budget."
        )
        self.parameter = self._gauge("policy_parameter", "The policy's parameter in force.")
        self.rolling_latency = self._gauge(
            "rolling_latency_seconds", "Mean latency over the window; NaN before the first sample."
        )
        self.feasible = self._gauge(
            "budget_feasible", "1 if the budget can be kept at present costs."
        )
        self.expected_accuracy = self._gauge(
            "expected_accuracy", "The frontier's accuracy at the parameter in force."
        )
        self.threshold = self._gauge("threshold", "The exit score from which rows leave.", "exit")
        self.exit_rate = self._gauge(
            "exit_rate", "Share of the window's samples that left here.", "exit"
        )

    def _add_quality(self) -> None:
        self.audit = AuditFamilies(self.registry, self.model_labels)
        self.feedback_samples = Counter(
            "eenet_feedback_samples",
            "Answers that a true label came for.",
            [*self.model_labels, "exit"],
            registry=self.registry,
        )
        self.feedback_accuracy = self._gauge(
            "feedback_accuracy_ratio",
            "Share of right answers among the latest true labels; NaN before any.",
            "exit",
        )
        self.score_drift = self._gauge(
            "score_drift",
            "Population stability index of the exit's latest scores against calibration; NaN while "
            "there are too few.",
            "exit",
        )
        self.promise_yields = self._gauge(
            "promise_yields", "1 while this promise gives way to the other.", "promise"
        )
        self.promise = self._gauge("promise", "1 for the promise in force.", "promise")
        self.promise_withdrawn = self._gauge(
            "promise_withdrawn", "1 while the promise in force is withdrawn: nothing leaves early."
        )
        self.certified_bound = self._gauge(
            "certified_bound_ratio",
            "Upper bound of the share of samples answered otherwise than by the whole network; NaN "
            "without a certificate in force.",
        )
        self.certified_epsilon = self._gauge(
            "certified_epsilon_ratio", "The promised largest share; NaN as there."
        )

    def count_rejected(self, reason: str, count: int = 1) -> None:
        """Count requests, or the samples of some, that were turned away."""
        self.rejected.labels(reason).inc(count)

    def count_spans(self, outcome: str, count: int) -> None:
        """Count spans that were exported or lost; any thread may call."""
        self.spans.labels(outcome).inc(count)

    def show_loop_lag(self, process: ProcessName, lag_s: float) -> None:
        """Set the gauge of a process's event loop."""
        self.loop_lag.labels(process.role, str(process.number)).set(lag_s)

    def observe_request(self, route: str, status: int, count: int = 1) -> None:
        """Count answered requests under a known route, or as `other`."""
        if route.startswith(f"{REPOSITORY}/"):
            route = REPOSITORY
        self.requests.labels(route if route in ROUTES else "other", str(status)).inc(count)

    def show_restarts(self, restarts: Mapping[str, int]) -> None:
        """Count the processes that were started in place of others, by role."""
        for role, count in restarts.items():
            self.restarts.labels(role).inc(count - self._shown_restarts.get(role, 0))
        self._shown_restarts = dict(restarts)

    def _latency(self, name: str, text: str, *labels: str) -> HistogramFamily:
        return HistogramFamily(
            f"eenet_{name}_latency_seconds",
            text,
            [*self.model_labels, *labels],
            LATENCY_BUCKETS,
            self.registry,
        )

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        names = [*self.model_labels, *labels]
        return Gauge(f"eenet_{name}", text, names, registry=self.registry)

    def key_of(self, model: str, version: str) -> tuple[str, ...]:
        """Return the values of a model's labels."""
        return (model, version)[: len(self.model_labels)]

    def remove_model(self, model: str, version: str) -> None:
        """Remove all series of a model."""
        labels = dict(zip(self.model_labels, (model, version), strict=False))
        for family in (*vars(self).values(), *vars(self.audit).values()):
            if isinstance(family, HistogramFamily):
                family.remove_by_labels(labels)
            elif isinstance(family, MetricWrapperBase) and "model" in family._labelnames:
                family.remove_by_labels(labels)


class AuditFamilies:
    """The metric families of the audit, registered once per app.

    Args:
        registry: Where.
        model_labels: Names of the labels that tell models apart.
    """

    def __init__(self, registry: CollectorRegistry, model_labels: Sequence[str]) -> None:
        self.agreement = Gauge(
            "eenet_audit_agreement_ratio",
            "Share of the audited samples that left here whose answer is the last exit's.",
            [*model_labels, "exit"],
            registry=registry,
        )
        self.samples = Counter(
            "eenet_audit_samples",
            "Audited samples, by the exit that they left at.",
            [*model_labels, "exit"],
            registry=registry,
        )
        self.skipped = Counter(
            "eenet_audit_skipped",
            "Samples drawn for the audit and not audited: too many in flight, or the client left.",
            model_labels,
            registry=registry,
        )
        self.lost = Counter(
            "eenet_audit_lost",
            "Samples whose audit failed or died with its engine; each counts as a disagreement.",
            model_labels,
            registry=registry,
        )


class AuditMetrics:
    """One model's.

    Args:
        families: The app's.
        key: Values of its labels.
        num_exits: K.
    """

    def __init__(self, families: AuditFamilies, key: Sequence[str], num_exits: int) -> None:
        exits = [str(k) for k in range(num_exits)]
        self._agreement = [families.agreement.labels(*key, k) for k in exits[:-1]]
        self.samples = [families.samples.labels(*key, k) for k in exits]
        self.skipped = families.skipped.labels(*key)
        self.lost = families.lost.labels(*key)

    def show(self, agreement: Sequence[float | None]) -> None:
        """Set the gauges to the agreement of each exit but the last; NaN where it is unknown."""
        for gauge, ratio in zip(self._agreement, agreement, strict=True):
            gauge.set(float("nan") if ratio is None else ratio)


class ModelMetrics:
    """One model's children of every family, looked up once.

    Args:
        metrics: The app's.
        model: Its name.
        version: Its version.
        num_exits: K.
    """

    def __init__(self, metrics: Metrics, model: str, version: str, num_exits: int) -> None:
        exits = [str(k) for k in range(num_exits)]
        key = metrics.key_of(model, version)
        self._families, self._info = metrics, metrics.model_info
        self._model, self._version = model, version
        self._shown_info: tuple[str, ...] | None = None
        self.predictions = [metrics.predictions.labels(*key, k) for k in exits]
        self._cancelled = metrics.cancelled.labels(*key)
        self.request_latency = metrics.request_latency.labels(*key)
        self.compute_latency = metrics.compute_latency.labels(*key)
        self.queue_latency = metrics.queue_latency.labels(*key)
        self.decode_latency = metrics.decode_latency.labels(*key)
        self.stage_latency = [metrics.stage_latency.labels(*key, k) for k in exits]
        self.batch_size = [metrics.batch_size.labels(*key, k) for k in exits]
        self._queue_depth = [metrics.queue_depth.labels(*key, k) for k in exits]
        self._queue_oldest = metrics.queue_oldest.labels(*key)
        self._budget = metrics.budget.labels(*key)
        self._effective_budget = metrics.effective_budget.labels(*key)
        self._parameter = metrics.parameter.labels(*key)
        self._rolling_latency = metrics.rolling_latency.labels(*key)
        self._feasible = metrics.feasible.labels(*key)
        self._expected_accuracy = metrics.expected_accuracy.labels(*key)
        self._threshold = [metrics.threshold.labels(*key, k) for k in exits[:-1]]
        self._exit_rate = [metrics.exit_rate.labels(*key, k) for k in exits]
        self.audit = AuditMetrics(metrics.audit, key, num_exits)
        self.feedback_samples = [metrics.feedback_samples.labels(*key, k) for k in exits]
        self._score_drift = [metrics.score_drift.labels(*key, k) for k in exits[:-1]]
        self._yields = {each: metrics.promise_yields.labels(*key, each) for each in OBJECTIVES}
        self._promise = {each: metrics.promise.labels(*key, each) for each in PROMISES}
        self._withdrawn = metrics.promise_withdrawn.labels(*key)
        self._certified_bound = metrics.certified_bound.labels(*key)
        self._certified_epsilon = metrics.certified_epsilon.labels(*key)
        self._feedback_accuracy = [metrics.feedback_accuracy.labels(*key, k) for k in exits]

    def count_work(self, work: Work) -> None:
        """Count what an engine did."""
        for stage in np.unique(work.stages).tolist():
            mine = work.stages == stage
            self.stage_latency[stage].observe(work.elapsed_ms[mine] / 1e3)
            self.batch_size[stage].observe(work.rows[mine].astype(np.float64))
        self.count_cancelled(work.cancelled)

    def count_cancelled(self, count: int) -> None:
        """Count requests that were dropped because their clients left."""
        self._cancelled.inc(count)

    def count_answers(self, answers: Answers) -> None:
        """Count answered requests."""
        for exit, count in enumerate(np.bincount(answers.exits).tolist()):
            self.predictions[exit].inc(count)
        self.request_latency.observe(answers.total_ms / 1e3)
        self.compute_latency.observe(answers.compute_ms / 1e3)
        self.queue_latency.observe(answers.queue_ms / 1e3)
        self.decode_latency.observe(answers.decode_ms[answers.decode_ms >= 0] / 1e3)
        if answers.exemplars:
            self._note_exemplars(answers)

    def _note_exemplars(self, answers: Answers) -> None:
        """Let the histograms name traces of requests that they have counted."""
        for place, trace_id, stages_ms in answers.exemplars:
            for histogram, column in (
                (self.request_latency, answers.total_ms),
                (self.compute_latency, answers.compute_ms),
                (self.queue_latency, answers.queue_ms),
                (self.decode_latency, answers.decode_ms),
            ):
                if column[place] >= 0:  # NaN: it came as arrays
                    histogram.note_exemplar(float(column[place]) / 1e3, trace_id)
            for stage, ms in stages_ms:
                self.stage_latency[stage].note_exemplar(ms / 1e3, trace_id)

    def remove(self, *, is_replaced: bool) -> None:
        """Remove all series, except those that a model of the same name and version still uses."""
        if not is_replaced:
            self._families.remove_model(self._model, self._version)
        elif self._shown_info is not None:
            self._info.remove(*self._shown_info)

    def show_policy(self, policy: str, device: str, precision: str) -> None:
        """Say what is loaded, in place of what was."""
        if self._shown_info is not None:
            self._info.remove(*self._shown_info)
        self._shown_info = (self._model, self._version, policy, device, precision)
        self._info.labels(*self._shown_info).set(1)

    def show_control(
        self, controller: BudgetController, thresholds: Sequence[float] | None
    ) -> None:
        """Set the gauges of the budget to the controller's present state."""
        nan = float("nan")
        ms = [controller.budget_ms, controller.effective_budget_ms, controller.rolling_latency_ms]
        for gauge, value in zip(
            [self._budget, self._effective_budget, self._rolling_latency], ms, strict=True
        ):
            gauge.set(nan if value is None else value / 1e3)
        self._parameter.set(controller.parameter)
        self._feasible.set(controller.feasible)
        self._expected_accuracy.set(
            controller.frontier.at_parameter(controller.parameter).expected_accuracy
        )
        rates = controller.exit_rates or [nan] * len(self._exit_rate)
        shared = [nan] * len(self._threshold) if thresholds is None else thresholds[:-1]
        for gauge, threshold in zip(self._threshold, shared, strict=True):
            gauge.set(threshold)
        for gauge, rate in zip(self._exit_rate, rates, strict=True):
            gauge.set(rate)

    def show_feedback(self, accuracies: Sequence[float | None]) -> None:
        """Set the gauges to each exit's accuracy by the true labels; NaN before any came."""
        for gauge, accuracy in zip(self._feedback_accuracy, accuracies, strict=True):
            gauge.set(float("nan") if accuracy is None else accuracy)

    def show_quality(self, drift: Sequence[float | None], yields: str | None) -> None:
        """Set the gauges of drift, and of the promise that gives way."""
        for gauge, index in zip(self._score_drift, drift, strict=True):
            gauge.set(float("nan") if index is None else index)
        for promise, gauge in self._yields.items():
            gauge.set(promise == yields)

    def show_promise(self, kind: str, certificate: Certificate | None, *, withdrawn: bool) -> None:
        """Set the gauges of the promise in force and of its certificate."""
        for promise, gauge in self._promise.items():
            gauge.set(promise == kind)
        nan = float("nan")
        self._withdrawn.set(withdrawn)
        self._certified_bound.set(nan if certificate is None else certificate.bound)
        self._certified_epsilon.set(nan if certificate is None else certificate.epsilon)

    def show_queues(self, depths: Sequence[int], oldest_s: float) -> None:
        """Set the gauges of the ready lists."""
        for gauge, depth in zip(self._queue_depth, depths, strict=True):
            gauge.set(depth)
        self._queue_oldest.set(oldest_s)
