"""The figures of a report: how they look, and those of an evaluation."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from ssd.evaluation.evaluate import Evaluation
from ssd.evaluation.pictures import class_colour

MANY_CLASSES = 12  # legends and numbers in cells are readable up to here
LONGEST_NAME = 28  # letters of a class's name beside an axis; the table has all of them
# Inches. Matplotlib's own layouts, which find these by drawing, take longer than all the rest of a report.
WIDTH = 5.4
TOP, RIGHT = 0.32, 0.12  # with a title
BOTTOM, BOTTOM_NAMED = 0.3, 0.5  # without and with a name of the axis
LEFT = 0.42  # for numbers as 0.2
TICK = 0.13  # between an axis and its labels, and beyond them
ROUNDED = 1.03  # letters are put on whole pixels
TITLE_SIZE = 11
# Names of classes are no formulas, whatever dollar signs are in them.
FIGURES: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def ap_figure(evaluation: Evaluation) -> Figure:
    order = np.argsort(np.nan_to_num(evaluation.result.ap, nan=-1))
    names = [shortened(evaluation.classes[i]) for i in order]
    figure, axes = plot("AP of each class", "", max(3.2, 0.26 * len(order) + 1), left=width_of(names, 10) + TICK)
    values = np.nan_to_num(np.array(evaluation.result.ap)[order])
    axes.barh(range(len(order)), values, color=[colour(int(i)) for i in order])
    axes.set_yticks(range(len(order)), names)
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
    names = [shortened(name) for name in (*classes, "background")]
    length = width_of(names, 8)
    bottom = length * math.sin(math.radians(60)) + 8 / 72 * math.cos(math.radians(60)) + TICK
    height = TOP + max(2.4, 0.2 * len(names)) + bottom
    figure, axes = plot("confusion: objects (rows), detections (columns)", "", height, length + TICK, bottom)
    axes.grid(False)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
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


def plot(title: str, x_label: str, height: float = 3.6, left: float = LEFT, bottom: float | None = None) -> tuple[Figure, Any]:
    """A figure of one plot.

    Args:
        title: of it.
        x_label: name of its x axis; may be empty.
        height: of the figure, inches.
        left: inches for the labels of the y axis.
        bottom: inches for those of the x axis; by default for numbers and its name.
    """
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_subplot()
    entitle(axes, title)
    axes.set_xlabel(x_label)
    with_margins(figure, left, bottom or (BOTTOM_NAMED if x_label else BOTTOM))
    return figure, axes


def with_margins(figure: Figure, left: float, bottom: float) -> None:
    """Leaves room around the plots of a figure, in inches."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left / width, bottom / height, 1 - RIGHT / width, 1 - TOP / height)


def entitle(axes: Axes, title: str) -> None:
    # With its place given Matplotlib need not look whether something is in its way, which takes as long as to draw it all.
    axes.set_title(title, fontsize=TITLE_SIZE, y=1)


def shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def width_of(names: Sequence[str], size: float) -> float:
    """Inches that the longest of some names takes in letters of that size."""
    font = FontProperties(size=size)
    return max(text_to_path.get_text_width_height_descent(name, font, ismath=False)[0] for name in names) / 72 * ROUNDED


def colour(label: int) -> tuple[float, ...]:
    """A class's colour in pictures, darker, as lines on white need it."""
    return tuple(0.75 * value / 255 for value in class_colour(label))


def grid(figures: Sequence[Figure]) -> str:
    return "<div class=grid>" + "".join(f"<div>{svg(figure)}</div>" for figure in figures) + "</div>"


def svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
