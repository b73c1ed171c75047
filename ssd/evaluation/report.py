"""The report of a run: one HTML file with all figures and pictures in it, which opens without a network."""

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
from ssd.evaluation.curves import curve_figures, over_fitting, series
from ssd.evaluation.evaluate import Evaluation
from ssd.evaluation.failures import faults_pictures, groups_tables, kinds_table
from ssd.evaluation.figures import FIGURES, ap_figure, confusion_figure, grid, pr_figure, score_figure
from ssd.evaluation.label_faults import Faults
from ssd.evaluation.overlap import pixel_iou
from ssd.evaluation.pictures import TRUTH, draw_boxes, evenly_spaced, jpeg, scaled_into
from ssd.evaluation.voc_eval import IOU_THRESH
from ssd.preprocessing import IMAGENET
from ssd.system.files import write_whole

NUM_HARDEST = 6
NUM_PICTURED = 6
NUM_FAULTS = 12
PICTURE_WIDTH, PICTURE_HEIGHT = 420, 840  # pixels, at most

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; margin: 0 auto; max-width: 1080px; padding: 0 16px 48px; }
h1 { font-size: 1.6rem; margin: 1.2em 0 0; } h2 { font-size: 1.2rem; margin: 2em 0 .4em; border-bottom: 1px solid #d8dee4; }
p.note { color: #57606a; margin: .2em 0 1em; }
.figures { display: flex; flex-wrap: wrap; gap: 12px; margin: 1em 0; }
.figures div { background: #f3f5f7; border-radius: 8px; padding: 10px 16px; } .figures b { display: block; font-size: 1.35rem; }
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
    """What a report is about."""

    title: str
    evaluation: Evaluation
    ground_truth: Sequence[Mapping[str, np.ndarray]]  # an entry a photo, as `voc_eval` takes it
    names: Sequence[str]  # of the photos
    image: Callable[[int], np.ndarray]  # a photo as it is, [H, W, 3] uint8 RGB
    records: Sequence[Mapping[str, Any]]  # of metrics.jsonl
    config: Mapping[str, Any]
    facts: Mapping[str, str]  # shown beside the environment
    sizes: np.ndarray  # [n, 2] width and height of the photos, in pixels
    edges: Sequence[int]  # of the groups of objects by their size in the network's input, in pixels
    faults: Faults  # likely ones, of the labels


@dataclass(frozen=True)
class MatchSummary:
    """How detections and objects of a data set meet, each photo by itself, classes aside."""

    confusion: np.ndarray  # [C + 1, C + 1]: rows are objects, columns detections; the last of each is background
    score_thresh: float  # from which on a detection counts
    missed: np.ndarray  # [n] objects a photo that no detection of their class meets
    false: np.ndarray  # [n] detections a photo that meet no object of their class


def write_report(path: Path, subject: ReportInput) -> None:
    """Writes the report.

    Raises:
        OSError: the file cannot be written.
    """
    text = render(subject)
    write_whole(path, lambda file: file.write(text.encode()))


def render(subject: ReportInput) -> str:
    """The report as HTML."""
    evaluation, result = subject.evaluation, subject.evaluation.result
    best, f1 = evaluation.best_score()
    outcome = compare(evaluation.detections, subject.ground_truth, len(evaluation.classes), best)
    with mpl.rc_context(FIGURES), warnings.catch_warnings():
        # The browser writes the names, with its own fonts; that Matplotlib's lacks a letter is of no account.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        training = curves(subject.records, evaluation.metric_name)
        classes = grid([ap_figure(evaluation), pr_figure(evaluation)])
        errors = grid([confusion_figure(outcome.confusion, evaluation.classes), score_figure(evaluation)])
    figures = {
        evaluation.metric_name: f"{evaluation.mean_ap:.4f}",
        "photos": f"{len(evaluation.detections):,}",
        "objects": f"{sum(result.num_objects):,}",
        "best F1": f"{f1:.3f} at score {best:.2f}",
    }
    boxes = "".join(f"<div>{html.escape(name)}<b>{html.escape(value)}</b></div>" for name, value in figures.items())
    title = html.escape(subject.title)
    config = dump_yaml(dict(subject.config))
    parts = [
        f"<h1>{title}</h1><div class=figures>{boxes}</div>",
        "<h2>Training</h2>", training,
        "<h2>Classes</h2>", class_table(evaluation), classes,
        f"<h2>Errors</h2><p class=note>Detections from score {best:.2f} on, where F1 is best, here and in the pictures below; "
        f"an object is found by an overlap of {IOU_THRESH:g} or more.</p>", errors,
        *why_it_fails(subject, best),
        "<h2>Hardest photos</h2><p class=note>Those with most missed objects and false detections. Ground truth on the left, "
        "detections on the right.</p>", pictures(subject, hardest(outcome), outcome),
        "<h2>Examples</h2>", pictures(subject, evenly_spaced(len(subject.names), NUM_PICTURED), outcome),
        "<h2>Environment</h2>", facts_table({**subject.facts, **environment()}),
        "<h2>Configuration</h2>", f"<pre>{html.escape(config)}</pre>",
    ]  # fmt: skip
    return page(subject.title, parts)


def page(title: str, parts: Sequence[str]) -> str:
    """A page of HTML with nothing outside of it."""
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'><style>{STYLE}</style>"
    return f"<!doctype html><html lang=en><title>{html.escape(title)}</title>{head}<body>{''.join(parts)}</body></html>\n"


def why_it_fails(subject: ReportInput, score_thresh: float) -> list[str]:
    """Sections on the kinds of error, the objects that are found badly, and the labels that may be wrong."""
    evaluation = subject.evaluation
    errors, classes = evaluation.errors, evaluation.classes
    cost = "the mAP that would be gained without the errors of that kind alone (TIDE)"
    by_group = "AP counts all false detections for each group, as if it were as large as its class (Hoiem et al.)"
    return [
        f"<h2>Why it fails</h2><p class=note>Cost: {cost}, at overlap {IOU_THRESH:g}. {by_group}. Errors, and the share of the "
        f"objects that is found: from score {score_thresh:.2f} on. Side: the root of the area, in pixels of the network's "
        f"{IMAGENET.size}.</p>", kinds_table(errors, score_thresh),
        groups_tables(evaluation, subject.ground_truth, subject.sizes, IMAGENET.size, subject.edges, score_thresh),
        "<h2>Labels that may be wrong</h2><p class=note>The likeliest of each kind in turn; more of them are in "
        "labels/coco.json. Labels in white, what was found in colour.</p>",
        faults_pictures(errors, subject.faults, classes, subject.names, subject.image, NUM_FAULTS),
    ]  # fmt: skip


def curves(records: Sequence[Mapping[str, Any]], metric_name: str) -> str:
    """The learning curves, and what they show."""
    figures, sentence = curve_figures(records, metric_name), over_fitting(records)
    if not figures:
        return "<p class=note>No records.</p>"
    note = "The training loss is of augmented samples; the validation loss, of photos as they are, may be the lower one."
    texts = [f"<p class=note>{note}</p>"] if series(records, "eval", "loss") else []
    texts += [f"<p>{sentence}</p>"] if sentence else []
    return "".join(texts) + grid(figures)


def compare(
    detections: Sequence[Mapping[str, np.ndarray]],
    truth: Sequence[Mapping[str, np.ndarray]],
    num_classes: int,
    score_thresh: float,
) -> MatchSummary:
    """Pairs detections, from a score on, and objects by falling overlap, whatever their classes; difficult objects, and what
    meets them, do not count."""
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
    """The object that each detection is paired with `[n]`, -1 for none: the largest overlap first, each at most once."""
    partner = np.full(overlap.shape[0], -1)
    left = overlap.copy()
    while left.size and left.max() >= IOU_THRESH:
        row, column = np.unravel_index(left.argmax(), left.shape)
        partner[row] = column
        left[row], left[:, column] = -1, -1
    return partner


def hardest(outcome: MatchSummary) -> list[int]:
    errors = outcome.missed + outcome.false
    order = np.argsort(-errors, kind="stable")[:NUM_HARDEST]
    return [int(i) for i in order if errors[i]]


def class_table(evaluation: Evaluation) -> str:
    result = evaluation.result
    rows = zip(evaluation.classes, result.ap, result.num_objects, result.num_detections, strict=True)
    cells = "".join(
        f"<tr><td>{html.escape(name)}<td>{'–' if np.isnan(ap) else f'{ap:.4f}'}<td>{objects}<td>{detections}"
        for name, ap, objects, detections in rows
    )
    return f"<div class=wide><table><tr><th>class<th>AP<th>objects<th>detections{cells}</table></div>"


def facts_table(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><td>{html.escape(name)}<td>{html.escape(value)}" for name, value in facts.items())
    return f"<div class=wide><table>{rows}</table></div>"


def environment() -> dict[str, str]:
    versions = {"Python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}
    return {**versions, "OpenCV": cv2.__version__, "system": platform.platform()}


def pictures(subject: ReportInput, indices: Sequence[int], outcome: MatchSummary) -> str:
    """Photos in pairs: ground truth, detections."""
    if not indices:
        return "<p class=note>None.</p>"
    cells = []
    for index in indices:
        image, truth, found = subject.image(index), subject.ground_truth[index], subject.evaluation.detections[index]
        sure = found["scores"] >= outcome.score_thresh
        found = {name: values[sure] for name, values in found.items()}
        height, width = image.shape[:2]
        small = scaled_into(image, min(PICTURE_WIDTH, width), min(PICTURE_HEIGHT, height))
        scale = np.tile([small.shape[1] / width, small.shape[0] / height], 2)
        classes = subject.evaluation.classes
        sides = (
            draw_boxes(small, voc_to_edges(truth["boxes"]) * scale, truth["labels"], classes, colour=TRUTH),
            draw_boxes(small, voc_to_edges(found["boxes"]) * scale, found["labels"], classes, found["scores"]),
        )
        images = "".join(f"<img alt='' src='{jpeg(side)}'>" for side in sides)
        caption = f"{html.escape(subject.names[index])}: {outcome.missed[index]} missed, {outcome.false[index]} false"
        cells.append(f"<figure><div class=pair>{images}</div><figcaption>{caption}</figcaption></figure>")
    return f"<div class=grid>{''.join(cells)}</div>"
