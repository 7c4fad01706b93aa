"""The audit's metric families and one model's children."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from server.audit import AuditLog


class AuditFamilies:
    """What is registered once an app.

    Args:
        registry: Where.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.agreement = Gauge(
            "eenet_audit_agreement_ratio",
            "Share of the audited samples that left here whose answer is the last exit's.",
            ["model", "exit"],
            registry=registry,
        )
        self.samples = Counter(
            "eenet_audit_samples",
            "Audited samples, by the exit that they left at.",
            ["model", "exit"],
            registry=registry,
        )
        self.skipped = Counter(
            "eenet_audit_skipped",
            "Samples drawn for the audit that were not audited: no slack, or lost on the way.",
            ["model"],
            registry=registry,
        )


class AuditMetrics:
    """One model's.

    Args:
        families: The app's.
        model: Its name.
        num_exits: K.
    """

    def __init__(self, families: AuditFamilies, model: str, num_exits: int) -> None:
        exits = [str(k) for k in range(num_exits)]
        self._agreement = [families.agreement.labels(model, k) for k in exits[:-1]]
        self.samples = [families.samples.labels(model, k) for k in exits]
        self.skipped = families.skipped.labels(model)

    def show(self, log: AuditLog) -> None:
        """Set the gauges to what the log shows; NaN where nothing is known."""
        for exit, gauge in enumerate(self._agreement):
            ratio = log.at(exit).ratio
            gauge.set(float("nan") if ratio is None else ratio)
