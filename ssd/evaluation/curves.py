"""The learning curves of a run, drawn from its records: losses, mAP, learning rate and the norm of the gradient."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator, StrMethodFormatter

from ssd.evaluation.figures import BOTTOM_NAMED, TOP, WIDTH, entitle, with_margins

Records = Sequence[Mapping[str, Any]]  # of metrics.jsonl

MIN_RISES = 3  # of the validation loss, one after the other; two are as often chance
# Inches.
LEFT_OF_CURVES = 0.75  # for numbers as 0.00025
PLOT = 1.45  # the height of one
GAP = 0.4  # between them, for the title of the lower one
TRAIN, VAL = "tab:blue", "tab:orange"


class Series(NamedTuple):
    """Values by iteration."""

    at: np.ndarray  # [n] iterations
    values: np.ndarray  # [n]


class Panel(NamedTuple):
    """One of the plots that share an axis of iterations."""

    title: str
    train: Series | None = None
    val: Series | None = None
    is_noisy: bool = False  # the training values, which are then drawn smoothed
    is_log: bool = False
    top: float | None = None


def series(records: Records, kind: str, name: str) -> Series | None:
    """One figure of the records of a kind; None where none has it, as of runs that were begun before it was recorded."""
    points = [(r["iteration"], r[name]) for r in records if r["kind"] == kind and r.get(name) is not None]
    return Series(*np.array(points, float).T) if points else None


def curve_figures(records: Records, metric_name: str) -> list[Figure]:
    """What a run is judged by, drawn together, and the parts of its loss; without what no record has."""
    loss, loss_l, loss_c = (
        Panel(title, series(records, "train", name), series(records, "eval", name), is_noisy=True)
        for title, name in (("loss", "loss"), ("localisation loss", "loss_l"), ("classification loss", "loss_c"))
    )
    precision = Panel(metric_name, val=series(records, "eval", "map"), top=1)
    lr = Panel("learning rate", series(records, "train", "lr"))
    norm = Panel("norm of the gradient", series(records, "train", "grad_norm"), is_noisy=True, is_log=True)
    figures = ((loss, precision, lr), (loss_l, loss_c, norm))
    shown = [[panel for panel in panels if panel.train or panel.val] for panels in figures]
    return [draw_panels(panels) for panels in shown if panels]


def draw_panels(panels: Sequence[Panel]) -> Figure:
    """Plots one below the other, over the same iterations."""
    figure = Figure(figsize=(WIDTH, TOP + len(panels) * PLOT + (len(panels) - 1) * GAP + BOTTOM_NAMED))
    with_margins(figure, LEFT_OF_CURVES, BOTTOM_NAMED)
    figure.subplots_adjust(hspace=GAP / PLOT)
    (column,) = figure.subplots(len(panels), sharex=True, squeeze=False).T
    for axes, panel in zip(column, panels, strict=True):
        draw_panel(axes, panel)
    column[-1].set_xlabel("iteration")
    last = max(each.at[-1] for panel in panels for each in (panel.train, panel.val) if each)
    column[-1].set_xlim(0, 1.02 * last)
    column[-1].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    column[-1].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    return figure


def draw_panel(axes: Axes, panel: Panel) -> None:
    entitle(axes, panel.title)
    train, val = panel.train, panel.val
    if train and panel.is_noisy:
        axes.plot(*train, color=TRAIN, alpha=0.25, linewidth=0.8)
        axes.plot(train.at, smoothed(train.values), color=TRAIN, label="training, smoothed")
    elif train:
        axes.plot(*train, color=TRAIN, label="training")
    if val:
        axes.plot(*val, color=VAL, marker="o", markersize=3.5, label="validation")
    if train and val:
        axes.legend(fontsize=8)
    if panel.is_log and train and train.values.any():
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(LogFormatter())  # between powers of ten, where there are few
    else:
        axes.set_ylim(0, panel.top or top_of(train, val))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # powers would be written as formulas


def top_of(train: Series | None, val: Series | None) -> float | None:
    """Where a plot ends that shows the course of a loss, however large the first ones were."""
    largest = val.values.max() if val else 0.0
    usual = np.quantile(train.values, 0.98) if train else largest
    return 1.1 * max(usual, min(largest, 2 * usual)) or None


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean of each value and its neighbours `[n]`: a 50th of all on either side.

    At the start, where a loss falls fast, there are as few after it as before it; at the end there are those before it.
    """
    place = np.arange(len(values))
    reach = np.minimum(len(values) // 50, place)
    begin, end = place - reach, np.minimum(place + reach + 1, len(values))
    total = np.concatenate([[0.0], np.cumsum(values)])
    return (total[end] - total[begin]) / (end - begin)


def over_fitting(records: Records) -> str:
    """A sentence where the validation loss rose in each of the last evaluations while the training loss fell; else nothing."""
    train, val = series(records, "train", "loss"), series(records, "eval", "loss")
    if train is None or val is None:
        return ""
    falls = np.flatnonzero(np.diff(val.values) <= 0)
    start = int(falls[-1]) + 1 if len(falls) else 0
    num_rises = len(val.values) - 1 - start
    if num_rises < MIN_RISES:
        return ""
    before, after = trained_to(train, val.at, start), trained_to(train, val.at, len(val.at) - 1)
    if not after < before:
        return ""
    return (
        f"The validation loss rose in each of the last {num_rises} evaluations, from {val.values[start]:.3f} at iteration "
        f"{val.at[start]:,.0f} to {val.values[-1]:.3f} at {val.at[-1]:,.0f}, while the training loss fell from {before:.3f} to "
        f"{after:.3f}: the network is over-fitting, and more photos or a shorter run would help."
    )


def trained_to(train: Series, evaluations: np.ndarray, number: int) -> float:
    """The mean training loss in the second half of the time between an evaluation and the one before; NaN without records."""
    begin, end = evaluations[number - 1] if number else 0, evaluations[number]
    during = train.values[(train.at > (begin + end) / 2) & (train.at <= end)]
    return float(during.mean()) if len(during) else float("nan")
