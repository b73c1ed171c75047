"""The figures of a report: how they look, and those of an evaluation."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ssd.evaluation.evaluate import Evaluation
from ssd.evaluation.pictures import class_colour

MANY_CLASSES = 12  # legends and numbers in cells are readable up to here
# Names of classes are no formulas, whatever dollar signs are in them.
FIGURES: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def ap_figure(evaluation: Evaluation) -> Figure:
    figure, axes = plot("AP of each class", "")
    order = np.argsort(np.nan_to_num(evaluation.result.ap, nan=-1))
    figure.set_figheight(max(3.2, 0.26 * len(order) + 1))
    values = np.nan_to_num(np.array(evaluation.result.ap)[order])
    axes.barh(range(len(order)), values, color=[colour(int(i)) for i in order])
    axes.set_yticks(range(len(order)), [evaluation.classes[i] for i in order])
    axes.set_xlim(0, 1)
    return figure


def pr_figure(evaluation: Evaluation) -> Figure:
    figure, axes = plot("precision by recall (overlap 0.5)", "recall")
    result = evaluation.result
    present = np.flatnonzero(result.num_objects).tolist()
    lines = [axes.plot(result.recall[i], result.precision[i], color=colour(i), linewidth=1.2)[0] for i in present]
    axes.set(xlim=(0, 1.01), ylim=(0, 1.01))
    if len(evaluation.classes) <= MANY_CLASSES:
        axes.legend(lines, [evaluation.classes[i] for i in present], fontsize=8)  # also those that begin with _
    return figure


def confusion_figure(confusion: np.ndarray, classes: Sequence[str]) -> Figure:
    figure, axes = plot("confusion: objects (rows), detections (columns)", "")
    axes.grid(False)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    names = [*classes, "background"]
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    figure.set_figheight(max(3.6, 0.2 * len(names) + 2))
    if len(classes) <= MANY_CLASSES:
        for row, column in np.ndindex(*confusion.shape):
            dark = share[row, column] > 0.5
            value = confusion[row, column]
            axes.text(column, row, f"{value}", ha="center", va="center", fontsize=8, color="white" if dark else "black")
    return figure


def score_figure(evaluation: Evaluation) -> Figure:
    figure, axes = plot("by least score, mean over classes", "score")
    thresholds, *curves = evaluation.score_curves()
    for name, values in zip(("precision", "recall", "F1"), curves, strict=True):
        axes.plot(thresholds, values, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1.01))
    axes.legend()
    return figure


def plot(title: str, x_label: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x_label)
    return figure, axes


def colour(label: int) -> tuple[float, ...]:
    """A class's colour in pictures, darker, as lines on white need it."""
    return tuple(0.75 * value / 255 for value in class_colour(label))


def grid(figures: Sequence[Figure]) -> str:
    return "<div class=grid>" + "".join(f"<div>{svg(figure)}</div>" for figure in figures) + "</div>"


def svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
