"""What GET /audit and GET /audit/rows say of a model."""

import io
from collections.abc import Sequence

import numpy as np

from scheduler.monitoring.wilson import wilson
from server.audit import AuditedRow
from server.model import ServedModel
from server.schemas import AuditExit, AuditState


def audit_state(model: ServedModel) -> AuditState:
    """How far the exits of a model agree with its last, and what else is known of them."""
    model.count()
    auditor, last = model.auditor, model.num_exits - 1
    log = auditor.log
    drift, tallies = model.quality.drift.psi(), model.feedback.tallies
    return AuditState(
        model=model.name,
        policy=model.engine.policy.kind,
        share=auditor.share,
        samples=len(log.rows),
        skipped=auditor.skipped,
        agreement=log.early.ratio,
        agreement_ci95=_interval(*log.early),
        exits=[
            AuditExit(
                exit=exit,
                samples=log.at(exit).samples,
                agreement=log.at(exit).ratio if exit < last else None,
                agreement_ci95=_interval(*log.at(exit)) if exit < last else None,
                score_drift=drift[exit] if exit < last else None,
                feedback_samples=tallies[exit].labels,
                feedback_accuracy=tallies[exit].accuracy,
                feedback_accuracy_ci95=_interval(tallies[exit].labels, tallies[exit].right),
            )
            for exit in range(model.num_exits)
        ],
    )


def rows_npz(rows: Sequence[AuditedRow], labels: Sequence[int], empty: tuple[int, int]) -> bytes:
    """Audited rows as an npz file.

    Args:
        rows: N of them.
        labels: The true class of each, -1 where it is not known, (N,).
        empty: K and C, to say so of no rows.
    """
    exits, classes = empty
    log_probs = np.empty((exits, 0, classes), np.float16)
    if rows:
        log_probs = np.stack([row.log_probs for row in rows], 1)
    file = io.BytesIO()
    np.savez(
        file,
        allow_pickle=False,
        log_probs=log_probs,
        exits=np.array([row.exit for row in rows], np.int8),
        parameters=np.array([row.parameter for row in rows], np.float64),
        labels=np.array(labels, np.int32),
    )
    return file.getvalue()


def _interval(samples: int, hits: int) -> tuple[float, float] | None:
    """Within which the share lies with a confidence of 95 %; None of no samples."""
    return wilson(hits, samples) if samples else None
