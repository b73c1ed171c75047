"""The plots of a report: their style, and the plots of an evaluation."""

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
from ssd.inference.pictures import class_colour

MANY_CLASSES = 12  # maximum for legends and numbers in cells to be readable
LONGEST_NAME = 28  # letters of a class name beside an axis; the table shows it in full
# Inches. Matplotlib's own layout engines, which measure by drawing, take longer than the rest of a report.
WIDTH = 5.4
TOP, RIGHT = 0.32, 0.12  # with a title
BOTTOM, BOTTOM_NAMED = 0.3, 0.5  # without and with a label of the axis
LEFT = 0.42  # for numbers such as 0.2
TICK = 0.13  # between an axis and its labels, and beyond them
ROUNDED = 1.03  # factor: letters are placed on whole pixels
TITLE_SIZE = 11
PLOT_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # class names may have dollar signs
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def ap_plot(evaluation: Evaluation) -> Figure:
    order = np.argsort(np.nan_to_num(evaluation.result.ap, nan=-1))
    names = [shortened(evaluation.classes[i]) for i in order]
    figure, axes = new_plot("AP of each class", "", max(3.2, 0.26 * len(order) + 1), left=width_of(names, 10) + TICK)
    values = np.nan_to_num(np.array(evaluation.result.ap)[order])
    axes.barh(range(len(order)), values, color=[colour(int(i)) for i in order])
    axes.set_yticks(range(len(order)), names)
    axes.set_xlim(0, 1)
    return figure


def pr_plot(evaluation: Evaluation) -> Figure:
    figure, axes = new_plot("precision by recall (overlap 0.5)", "recall")
    result = evaluation.result
    present = np.flatnonzero(result.num_objects).tolist()
    lines = [axes.plot(result.recall[i], result.precision[i], color=colour(i), linewidth=1.2)[0] for i in present]
    axes.set(xlim=(0, 1.01), ylim=(0, 1.01))
    if len(evaluation.classes) <= MANY_CLASSES:
        axes.legend(lines, [evaluation.classes[i] for i in present], fontsize=8)  # by hand: names may begin with _
    return figure


def confusion_plot(confusion: np.ndarray, classes: Sequence[str]) -> Figure:
    names = [shortened(name) for name in (*classes, "background")]
    length = width_of(names, 8)
    bottom = length * math.sin(math.radians(60)) + 8 / 72 * math.cos(math.radians(60)) + TICK
    height = TOP + max(2.4, 0.2 * len(names)) + bottom
    figure, axes = new_plot("confusion: objects (rows), detections (columns)", "", height, length + TICK, bottom)
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


def score_plot(evaluation: Evaluation) -> Figure:
    figure, axes = new_plot("by score threshold, mean over classes", "score")
    thresholds, *curves = evaluation.score_curves()
    for name, values in zip(("precision", "recall", "F1"), curves, strict=True):
        axes.plot(thresholds, values, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1.01))
    axes.legend()
    return figure


def new_plot(
    title: str, x_label: str, height: float = 3.6, left: float = LEFT, bottom: float | None = None
) -> tuple[Figure, Any]:
    """Return an empty plot.

    Args:
        title: of the plot.
        x_label: of the x axis; may be empty.
        height: of the figure, inches.
        left: inches for the labels of the y axis.
        bottom: inches for the labels of the x axis; by default for numbers and `x_label`.
    """
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_subplot()
    set_title(axes, title)
    axes.set_xlabel(x_label)
    set_margins(figure, left, bottom or (BOTTOM_NAMED if x_label else BOTTOM))
    return figure, axes


def set_margins(figure: Figure, left: float, bottom: float) -> None:
    """Set the margins around the plots of a figure, in inches."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left / width, bottom / height, 1 - RIGHT / width, 1 - TOP / height)


def set_title(axes: Axes, title: str) -> None:
    # With `y` given, Matplotlib does not search for a free place, which would take as long as drawing the plot.
    axes.set_title(title, fontsize=TITLE_SIZE, y=1)


def shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def width_of(names: Sequence[str], size: float) -> float:
    """Return the width of the longest name in letters of that size, inches."""
    font = FontProperties(size=size)
    return max(text_to_path.get_text_width_height_descent(name, font, ismath=False)[0] for name in names) / 72 * ROUNDED


def colour(label: int) -> tuple[float, ...]:
    """Return a class's colour in pictures, darkened for lines on white."""
    return tuple(0.75 * value / 255 for value in class_colour(label))


def grid(figures: Sequence[Figure]) -> str:
    return "<div class=grid>" + "".join(f"<div>{svg(figure)}</div>" for figure in figures) + "</div>"


def svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
