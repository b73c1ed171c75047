"""The report of a run: one HTML file with all plots and pictures in it, which opens without a network connection."""

import html
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
import torch
import torchvision

from ssd.boxes import voc_to_edges
from ssd.config.yaml import dump_yaml
from ssd.evaluation.curves import curve_plots, over_fitting, series
from ssd.evaluation.evaluate import Evaluation
from ssd.evaluation.failures import faults_pictures, groups_tables, kinds_table
from ssd.evaluation.label_faults import Faults
from ssd.evaluation.metrics import voc_entries
from ssd.evaluation.overlap import pixel_iou
from ssd.evaluation.plots import PLOT_STYLE, ap_plot, confusion_plot, grid, pr_plot, score_plot
from ssd.evaluation.voc_eval import IOU_THRESH
from ssd.inference.pictures import TRUTH, draw_boxes, evenly_spaced, jpeg, scaled_into
from ssd.system.files import write_text

NUM_HARDEST = 6
NUM_PICTURED = 6
NUM_FAULTS = 12
PICTURE_WIDTH, PICTURE_HEIGHT = 420, 840  # maximum, pixels

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; margin: 0 auto; max-width: 1080px; padding: 0 16px 48px; }
h1 { font-size: 1.6rem; margin: 1.2em 0 0; } h2 { font-size: 1.2rem; margin: 2em 0 .4em; border-bottom: 1px solid #d8dee4; }
p.note { color: #57606a; margin: .2em 0 1em; }
.metrics { display: flex; flex-wrap: wrap; gap: 12px; margin: 1em 0; }
.metrics div { background: #f3f5f7; border-radius: 8px; padding: 10px 16px; } .metrics b { display: block; font-size: 1.35rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 16px; align-items: start; }
svg, img { max-width: 100%; height: auto; display: block; } svg { overflow: visible; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; } figure { margin: 0; } figcaption { color: #57606a; font-size: .85rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin-bottom: 16px; } table { border-collapse: collapse; } td, th { padding: 3px 8px; text-align: right; border-bottom: 1px solid #e5e9ed; }
td:first-child, th:first-child { text-align: left; } pre { background: #f3f5f7; padding: 12px; overflow-x: auto; font-size: .85rem; }
.bar { min-width: min(120px, 12vw); } .bar i { display: block; height: .8em; background: #4a7fb5; border-radius: 2px; } td.text { text-align: left; color: #57606a; min-width: 17em; }
.small { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 240px), 1fr)); gap: 12px; margin-bottom: 16px; }
"""  # noqa: E501


@dataclass(frozen=True)
class ReportInput:
    """The contents of a report."""

    title: str
    evaluation: Evaluation
    ground_truth: Sequence[Mapping[str, np.ndarray]]  # one entry for each photo, as in `voc_eval`
    names: Sequence[str]  # of the photos
    image: Callable[[int], np.ndarray]  # returns a photo, [H, W, 3] uint8 RGB
    records: Sequence[Mapping[str, Any]]  # of metrics.jsonl
    config: Mapping[str, Any]
    facts: Mapping[str, str]  # shown with the environment
    sizes: np.ndarray  # [n, 2] width and height of the photos, pixels
    input_size: int  # side of the network's input, pixels
    edges: Sequence[int]  # limits of the groups of objects by size, in pixels of the network's input
    faults: Faults  # in the labels


@dataclass(frozen=True)
class MatchSummary:
    """How the detections and objects in each photo match, regardless of class."""

    confusion: np.ndarray  # [C + 1, C + 1]: rows are objects, columns detections; the last of each is background
    score_thresh: float  # minimum score of the detections
    missed: np.ndarray  # [n] objects in each photo without a detection of their class
    false: np.ndarray  # [n] detections in each photo without an object of their class


def write_report(path: Path, report: ReportInput) -> None:
    """Write the report.

    Raises:
        OSError: the file cannot be written.
    """
    text = render(report)
    write_text(path, text)


def render(report: ReportInput) -> str:
    """Return the report as HTML."""
    evaluation, result = report.evaluation, report.evaluation.result
    best, f1 = evaluation.best_score()
    matches = match_summary(voc_entries(evaluation.detections), report.ground_truth, len(evaluation.classes), best)
    with mpl.rc_context(PLOT_STYLE), warnings.catch_warnings():
        # The browser draws the names with its own fonts, so a letter missing from Matplotlib's font does not matter.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        training = curves(report.records, evaluation.metric.title)
        classes = grid([ap_plot(evaluation), pr_plot(evaluation)])
        errors = grid([confusion_plot(matches.confusion, evaluation.classes), score_plot(evaluation)])
    metrics = {
        evaluation.metric.title: f"{evaluation.mean_ap:.4f}",
        "photos": f"{len(evaluation.detections):,}",
        "objects": f"{sum(result.num_objects):,}",
        "best F1": f"{f1:.3f} at score {best:.2f}",
    }
    boxes = "".join(f"<div>{html.escape(name)}<b>{html.escape(value)}</b></div>" for name, value in metrics.items())
    title = html.escape(report.title)
    config = dump_yaml(dict(report.config))
    parts = [
        f"<h1>{title}</h1><div class=metrics>{boxes}</div>",
        "<h2>Training</h2>", training,
        "<h2>Classes</h2>", class_table(evaluation), classes,
        f"<h2>Errors</h2><p class=note>Detections with scores from {best:.2f}, where F1 is best, here and in the pictures "
        f"below. A detection finds an object if they overlap by {IOU_THRESH:g} or more.</p>", errors,
        *why_it_fails(report, best),
        "<h2>Hardest photos</h2><p class=note>Photos with the most missed objects and false detections. Ground truth is on the "
        "left, detections on the right.</p>", pictures(report, hardest(matches), matches),
        "<h2>Examples</h2>", pictures(report, evenly_spaced(len(report.names), NUM_PICTURED), matches),
        "<h2>Environment</h2>", facts_table({**report.facts, **environment()}),
        "<h2>Configuration</h2>", f"<pre>{html.escape(config)}</pre>",
    ]  # fmt: skip
    return page(report.title, parts)


def page(title: str, parts: Sequence[str]) -> str:
    """Return a self-contained HTML page."""
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'><style>{STYLE}</style>"
    return f"<!doctype html><html lang=en><title>{html.escape(title)}</title>{head}<body>{''.join(parts)}</body></html>\n"


def why_it_fails(report: ReportInput, score_thresh: float) -> list[str]:
    """Return the sections on kinds of errors, groups of objects, and labels that may be wrong."""
    evaluation = report.evaluation
    errors, classes = evaluation.errors, evaluation.classes
    lost = "the gain of mAP if the errors of that kind alone were corrected (TIDE)"
    by_group = "AP of a group counts all false detections, as if the group were as large as its class (Hoiem et al.)"
    return [
        f"<h2>Why it fails</h2><p class=note>mAP lost: {lost}, at overlap {IOU_THRESH:g}. {by_group}. Errors and the share of "
        f"objects found: with scores from {score_thresh:.2f}. Side: the square root of the area, in pixels of the network's "
        f"{report.input_size} × {report.input_size} input.</p>", kinds_table(errors, score_thresh),
        groups_tables(errors, report.ground_truth, report.sizes, report.input_size, report.edges, score_thresh),
        "<h2>Labels that may be wrong</h2><p class=note>The likeliest of each kind in turn; labels/coco.json has "
        "more. Labels are white, detections coloured.</p>",
        faults_pictures(errors, report.faults, classes, report.names, report.image, NUM_FAULTS),
    ]  # fmt: skip


def curves(records: Sequence[Mapping[str, Any]], metric_title: str) -> str:
    """Return the learning curves with a comment."""
    plots, sentence = curve_plots(records, metric_title), over_fitting(records)
    if not plots:
        return "<p class=note>No records.</p>"
    note = "Training uses augmented samples and validation does not, so the validation loss may be lower."
    texts = [f"<p class=note>{note}</p>"] if series(records, "eval", "loss") else []
    texts += [f"<p>{sentence}</p>"] if sentence else []
    return "".join(texts) + grid(plots)


def match_summary(
    detections: Sequence[Mapping[str, np.ndarray]],
    truth: Sequence[Mapping[str, np.ndarray]],
    num_classes: int,
    score_thresh: float,
) -> MatchSummary:
    """Pair detections with at least that score and objects by falling overlap, regardless of class. Difficult objects, and
    detections paired with them, do not count."""
    confusion = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    missed, false = np.zeros(len(truth), np.int64), np.zeros(len(truth), np.int64)
    for i, (found, objects) in enumerate(zip(detections, truth, strict=True)):
        sure = found["scores"] >= score_thresh
        boxes, labels = found["boxes"][sure], found["labels"][sure]
        overlap = pixel_iou(boxes[:, None], objects["boxes"])  # [n, m]
        partner = pair(overlap)  # [n]
        rows = np.where(partner >= 0, np.append(objects["labels"], num_classes)[partner], num_classes)
        counts = ~np.append(objects["difficult"], False)[partner]
        np.add.at(confusion, (rows[counts], labels[counts]), 1)
        lonely = np.setdiff1d(np.flatnonzero(~objects["difficult"]), partner)
        confusion[:, num_classes] += np.bincount(objects["labels"][lonely], minlength=num_classes + 1)
        right = counts & (rows == labels)
        false[i] = (counts & ~right).sum()
        missed[i] = (~objects["difficult"]).sum() - right.sum()
    return MatchSummary(confusion, score_thresh, missed, false)


def pair(overlap: np.ndarray) -> np.ndarray:
    """Return the object paired with each detection `[n]`, -1 for none: largest overlap first, each object at most once."""
    partner = np.full(overlap.shape[0], -1)
    rest = overlap.copy()
    while rest.size and rest.max() >= IOU_THRESH:
        row, column = np.unravel_index(rest.argmax(), rest.shape)
        partner[row] = column
        rest[row], rest[:, column] = -1, -1
    return partner


def hardest(matches: MatchSummary) -> list[int]:
    errors = matches.missed + matches.false
    order = np.argsort(-errors, kind="stable")[:NUM_HARDEST]
    return [int(i) for i in order if errors[i]]


def class_table(evaluation: Evaluation) -> str:
    result = evaluation.result
    scores = evaluation.class_scores()
    rows = zip(evaluation.classes, result.ap, result.num_objects, result.num_detections, strict=True)
    cells = "".join(
        f"<tr><td>{html.escape(name)}<td>{'–' if np.isnan(ap) else f'{ap:.4f}'}<td>{objects}<td>{detections}"
        f"<td>{scores[name]:.2f}"
        for name, ap, objects, detections in rows
    )
    return f"<div class=wide><table><tr><th>class<th>AP<th>objects<th>detections<th>best score{cells}</table></div>"


def facts_table(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><td>{html.escape(name)}<td>{html.escape(value)}" for name, value in facts.items())
    return f"<div class=wide><table>{rows}</table></div>"


def environment() -> dict[str, str]:
    versions = {"Python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}
    return {**versions, "OpenCV": cv2.__version__, "system": platform.platform()}


def pictures(report: ReportInput, indices: Sequence[int], matches: MatchSummary) -> str:
    """Return photos in pairs: ground truth, detections."""
    if not indices:
        return "<p class=note>None.</p>"
    cells = []
    for index in indices:
        image, truth, found = report.image(index), report.ground_truth[index], report.evaluation.detections[index]
        sure = found.scores >= matches.score_thresh
        height, width = image.shape[:2]
        small = scaled_into(image, min(PICTURE_WIDTH, width), min(PICTURE_HEIGHT, height))
        scale = np.tile([small.shape[1] / width, small.shape[0] / height], 2)
        classes = report.evaluation.classes
        sides = (
            draw_boxes(small, voc_to_edges(truth["boxes"]) * scale, truth["labels"], classes, colour=TRUTH),
            draw_boxes(small, found.boxes[sure] * scale, found.labels[sure], classes, found.scores[sure]),
        )
        images = "".join(f"<img alt='' src='{jpeg(side)}'>" for side in sides)
        caption = f"{html.escape(report.names[index])}: {matches.missed[index]} missed, {matches.false[index]} false"
        cells.append(f"<figure><div class=pair>{images}</div><figcaption>{caption}</figcaption></figure>")
    return f"<div class=grid>{''.join(cells)}</div>"
