"""The part of a report that tells why a detector fails: kinds of error, groups of objects, and labels that are likely wrong."""

import html
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ssd.boxes import voc_to_edges
from ssd.evaluation.error_kinds import Errors
from ssd.evaluation.evaluate import Evaluation
from ssd.evaluation.label_faults import FAULTS, MISSING, NOTHING_THERE, WRONG_CLASS, Faults
from ssd.evaluation.object_groups import Group, by_crowding, by_size, by_truncation
from ssd.evaluation.pictures import TRUTH, class_colour, draw_boxes, jpeg, scaled_into
from ssd.evaluation.voc_eval import VOC07

MEANINGS = {
    "localisation": "the right class, a box that overlaps the object by 0.1 to 0.5",
    "classification": "a good box, the wrong class",
    "duplicate": "an object found a second time",
    "background": "nothing is there",
    "both": "another class, and a box that overlaps the object by 0.1 to 0.5",
    "missed": "an object that nothing finds",
}
AROUND = 0.75  # of its sides, that is shown on each side of a box
LEAST_SHOWN = 120  # pixels of a photo
PICTURE = 300  # pixels a side, at most


def kinds_table(errors: Errors, score_thresh: float) -> str:
    """What each kind of error costs, the most costly first."""
    counts, largest = errors.counts(score_thresh), max(np.nan_to_num([*errors.map_impact.values()]).max(), 1e-9)
    rows = "".join(
        f"<tr><td>{kind}<td>{cost:.3f}<td class=bar>{bar(cost / largest)}<td>{counts[kind]:,}<td class=text>{MEANINGS[kind]}"
        for kind, cost in sorted(errors.map_impact.items(), key=lambda item: -item[1])
    )
    head = "<tr><th>kind<th>cost<th><th>errors<th>"
    return f"<div class=wide><table>{head}{rows}</table></div>"


def groups_tables(
    evaluation: Evaluation,
    ground_truth: Sequence[Mapping[str, np.ndarray]],
    sizes: np.ndarray,
    side: int,
    edges: Sequence[int],
    score_thresh: float,
) -> str:
    """How well objects are found by size, crowding and truncation.

    Args:
        evaluation: of the data set.
        ground_truth: its objects, an entry a photo.
        sizes: `[n, 2]` width and height of every photo.
        side: of the network's input, in pixels.
        edges: where the groups by size begin and end, in pixels of that input.
        score_thresh: from which on an object counts as found.
    """
    errors, use_07_metric = evaluation.errors, evaluation.result.metric == VOC07
    tables = {
        "side": by_size(errors, sizes, side, edges, score_thresh, use_07_metric),
        "crowding": by_crowding(errors, score_thresh, use_07_metric),
        "truncation": by_truncation(errors, ground_truth, score_thresh, use_07_metric),
    }
    return "<div class=grid>" + "".join(group_table(title, groups) for title, groups in tables.items() if groups) + "</div>"


def group_table(title: str, groups: Sequence[Group]) -> str:
    rows = "".join(
        f"<tr><td>{name}<td>{num_objects:,}<td>{found:.0%}<td>{ap:.3f}<td class=bar>{bar(ap)}"
        for name, num_objects, found, ap in groups
    )
    return f"<div class=wide><table><tr><th>{title}<th>objects<th>found<th>AP<th>{rows}</table></div>"


def bar(share: float) -> str:
    """A bar of a share 0..1 of its column's width."""
    return f"<i style='width:{100 * np.nan_to_num(share):.0f}%'></i>"


def faults_pictures(
    errors: Errors,
    faults: Faults,
    classes: Sequence[str],
    names: Sequence[str],
    image: Callable[[int], np.ndarray],
    count: int,
) -> str:
    """The first of the labels that are likely wrong: the label in white, what was found instead in its class's colour.

    Args:
        errors: of a data set.
        faults: in its labels.
        classes: names.
        names: of the photos.
        image: a photo as it is, `[H, W, 3]` uint8 RGB.
        count: how many are shown.
    """
    cells = []
    for rank in range(min(count, len(faults.kind))):
        number = int(faults.image[rank])
        name, text = html.escape(names[number]), html.escape(fault_text(errors, faults, classes, rank))
        picture = jpeg(fault_picture(errors, faults, classes, image(number), rank))
        cells.append(f"<figure><img alt='' src='{picture}'><figcaption>{rank + 1}. {name}: {text}</figcaption></figure>")
    return f"<div class=small>{''.join(cells)}</div>" if cells else "<p class=note>None.</p>"


def fault_text(errors: Errors, faults: Faults, classes: Sequence[str], rank: int) -> str:
    """One fault in words."""
    kind, found, of_object = (int(part[rank]) for part in (faults.kind, faults.detection, faults.object))
    label = "" if kind == MISSING else classes[int(errors.objects.labels[of_object])]
    sure = "" if found < 0 else f"{classes[int(errors.found.labels[found])]} {errors.found.values[found]:.2f}"
    if kind == MISSING:
        return f"missing label? {sure}"
    if kind == NOTHING_THERE:
        return f"{label}: nothing there?"
    return f"{label}: {FAULTS[kind]}? {sure if kind == WRONG_CLASS else f'overlap {errors.overlap[found]:.2f}'}"


def fault_picture(errors: Errors, faults: Faults, classes: Sequence[str], image: np.ndarray, rank: int) -> np.ndarray:
    """The part of a photo around one fault in it `[h, w, 3]` uint8 RGB."""
    found, of_object = faults.detection[rank], faults.object[rank]
    parts = [(errors.objects, of_object, TRUTH)] if of_object >= 0 else []
    parts += [(errors.found, found, class_colour(int(errors.found.labels[found])))] if found >= 0 else []
    boxes = np.array([voc_to_edges(each.boxes[row]) for each, row, _ in parts])
    left, top, right, bottom = part_around(boxes, image.shape[1], image.shape[0])
    small = scaled_into(image[top:bottom, left:right], PICTURE, PICTURE)
    scale = np.tile([small.shape[1] / (right - left), small.shape[0] / (bottom - top)], 2)
    for (each, row, colour), box in zip(parts, (boxes - [left, top, left, top]) * scale, strict=True):
        scores = each.values[row : row + 1] if each is errors.found else None
        small = draw_boxes(small, box[None], each.labels[row : row + 1], classes, scores, colour)
    return small


def part_around(boxes: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    """The part of a photo around boxes `[n, 4]` (edges), as edges in whole pixels."""
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    around = np.maximum(AROUND * (high - low), (LEAST_SHOWN - (high - low)) / 2)
    left, top = np.clip(low - around, 0, [width - 1, height - 1]).astype(int).tolist()
    right, bottom = np.clip(high + around, [left + 1, top + 1], [width, height]).astype(int).tolist()
    return left, top, right, bottom
