"""The learning curves of a run, plotted from its records: losses, mAP, learning rate and gradient norm."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator, StrMethodFormatter

from ssd.evaluation.plots import BOTTOM_NAMED, TOP, WIDTH, set_margins, set_title

Records = Sequence[Mapping[str, Any]]  # in metrics.jsonl

MIN_RISES = 3  # consecutive, of the validation loss; two are as often chance
# Inches.
LEFT_OF_CURVES = 0.75  # for numbers such as 0.00025
PLOT = 1.45  # height
GAP = 0.4  # between plots, for a title
TRAIN, VAL = "tab:blue", "tab:orange"


class Series(NamedTuple):
    """Values by iteration."""

    at: np.ndarray  # [n] iterations
    values: np.ndarray  # [n]


class Panel(NamedTuple):
    """One of several plots over the same iterations."""

    title: str
    train: Series | None = None
    val: Series | None = None
    is_noisy: bool = False  # draw smoothed training values too
    is_log: bool = False
    top: float | None = None


def series(records: Records, kind: str, name: str) -> Series | None:
    """Return one value of the records of a kind; None if no record has it, as in runs from before it was recorded."""
    points = [(r["iteration"], r[name]) for r in records if r["kind"] == kind and r.get(name) is not None]
    return Series(*np.array(points, float).T) if points else None


def curve_plots(records: Records, metric_title: str) -> list[Figure]:
    """Plot loss, mAP and learning rate together, then the parts of the loss and the gradient norm; skip what no record has."""
    loss, loss_l, loss_c = (
        Panel(title, series(records, "train", name), series(records, "eval", name), is_noisy=True)
        for title, name in (("loss", "loss"), ("localisation loss", "loss_l"), ("classification loss", "loss_c"))
    )
    precision = Panel(metric_title, val=series(records, "eval", "map"), top=1)
    lr = Panel("learning rate", series(records, "train", "lr"))
    norm = Panel("gradient norm", series(records, "train", "grad_norm"), is_noisy=True, is_log=True)
    columns = ((loss, precision, lr), (loss_l, loss_c, norm))
    shown = [[panel for panel in panels if panel.train or panel.val] for panels in columns]
    return [draw_panels(panels) for panels in shown if panels]


def draw_panels(panels: Sequence[Panel]) -> Figure:
    """Draw panels one below the other, over the same iterations."""
    figure = Figure(figsize=(WIDTH, TOP + len(panels) * PLOT + (len(panels) - 1) * GAP + BOTTOM_NAMED))
    set_margins(figure, LEFT_OF_CURVES, BOTTOM_NAMED)
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
    set_title(axes, panel.title)
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
        axes.yaxis.set_minor_formatter(LogFormatter())  # labels between powers of ten, if there are few
    else:
        axes.set_ylim(0, panel.top or top_of(train, val))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # the default writes powers as formulas


def top_of(train: Series | None, val: Series | None) -> float | None:
    """Return the upper limit of a loss plot, chosen so that large early values do not flatten the rest."""
    largest = val.values.max() if val else 0.0
    usual = np.quantile(train.values, 0.98) if train else largest
    return 1.1 * max(usual, min(largest, 2 * usual)) or None


def smoothed(values: np.ndarray) -> np.ndarray:
    """Return the moving average `[n]` over a 50th of all values on either side.

    Near the start, where a loss falls fast, the window shrinks on both sides; at the end, only on the right.
    """
    place = np.arange(len(values))
    reach = np.minimum(len(values) // 50, place)
    begin, end = place - reach, np.minimum(place + reach + 1, len(values))
    total = np.concatenate([[0.0], np.cumsum(values)])
    return (total[end] - total[begin]) / (end - begin)


def over_fitting(records: Records) -> str:
    """Return a warning if the validation loss rose in each of the last evaluations while the training loss fell; else ""."""
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
        f"{after:.3f}. The network is overfitting; more photos or a shorter run would help."
    )


def trained_to(train: Series, evaluations: np.ndarray, number: int) -> float:
    """Return the mean training loss in the second half of the interval before an evaluation; NaN without records."""
    begin, end = evaluations[number - 1] if number else 0, evaluations[number]
    during = train.values[(train.at > (begin + end) / 2) & (train.at <= end)]
    return float(during.mean()) if len(during) else float("nan")
