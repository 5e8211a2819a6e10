"""Predicted against true Dice as a picture: a plot of numbers, no scan in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from synthseg.evaluation.prediction import predictions_of, score_predictions
from synthseg.evaluation.yardstick import CaseResult
from synthseg.files import atomic_file


def write_plot(checked: Mapping[str, Sequence[CaseResult]], path: Path, threshold: float) -> bool:
    """One panel a mode, one colour a group. Returns: False when there is nothing to draw."""
    from matplotlib.figure import Figure

    panels = {mode: predictions_of(results) for mode, results in checked.items()}
    panels = {mode: predictions for mode, predictions in panels.items() if predictions}
    if not panels:
        return False
    figure = Figure(figsize=(4.6 * len(panels) + 1.6, 4.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for ax, (mode, predictions) in zip(axes, panels.items(), strict=True):
        for group in dict.fromkeys(p.group for p in predictions):
            of = [p for p in predictions if p.group == group]
            ax.scatter([p.true for p in of], [p.predicted for p in of], s=9, alpha=0.7, linewidths=0, label=group)
        ax.plot((0, 1), (0, 1), color="0.5", linewidth=0.8)
        for line in (ax.axvline, ax.axhline):
            line(threshold, color="0.5", linewidth=0.8, linestyle=":")
        score = score_predictions(predictions, threshold)
        ax.set_title(f"mode {mode}: n {score.n}, r {score.pearson:.3f}, AUC {score.auc:.3f}", fontsize=9)
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="true Dice", aspect="equal")
    axes[0].set_ylabel("predicted Dice")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=100, metadata={"Software": None})
    return True
