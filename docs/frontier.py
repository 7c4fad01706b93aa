"""Draw docs/images/frontier.svg: what the shipped bundle's policy buys on its test predictions."""

from pathlib import Path

import matplotlib
import numpy as np

from models.bundle import load_bundle
from profiling.calibration import load_recorded
from profiling.evaluate import evaluate, spread_budgets
from scheduler.maxprob_fit import fit_maxprob
from scheduler.scheduler import load_scheduler

matplotlib.use("svg")
import matplotlib.pyplot as plt

REPO = Path(__file__).parent.parent
BUNDLE = REPO / "models/zoo/cifar10-resnet56"


def main(plain: tuple[float, float] | None) -> None:
    """Draw EENet, max probability, the exits alone, and the plain network (cost ms, accuracy)."""
    eenet, recorded = load_scheduler(BUNDLE), load_recorded(BUNDLE / "calibration.npz")
    calibration, costs = recorded.calibration, eenet.frontier.costs_ms
    maxprob = fit_maxprob(calibration.log_probs, calibration.labels, costs)
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for scheduler, name, style in ((eenet, "EENet", "-"), (maxprob, "max probability", "--")):
        rows = evaluate(scheduler, recorded.test, spread_budgets(costs, 60))
        axes.plot([r.cost_ms for r in rows], [100 * r.accuracy for r in rows], style, label=name)
    axes.plot(costs, 100 * recorded.test.correct.mean(0), "ko", label="one exit for all")
    if plain is not None:
        axes.plot(plain[0], 100 * plain[1], "rs", label="plain ResNet-56")
    axes.set(xlabel="mean latency per image, ms", ylabel="test accuracy, %")
    axes.set_title(load_bundle(BUNDLE).manifest.name, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    matplotlib.rcParams["svg.hashsalt"] = "frontier"
    figure.savefig(REPO / "docs/images/frontier.svg", metadata={"Date": None})
    print(np.round(costs, 3).tolist())


if __name__ == "__main__":
    import sys

    main((float(sys.argv[1]), float(sys.argv[2])) if len(sys.argv) > 2 else None)
