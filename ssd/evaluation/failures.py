"""The section of a report on a detector's failures: kinds of errors, groups of objects, and labels that may be wrong."""

import html
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ssd.boxes import voc_to_edges
from ssd.evaluation.error_kinds import Errors
from ssd.evaluation.label_faults import FAULTS, MISSING, NOTHING_THERE, WRONG_CLASS, Faults
from ssd.evaluation.object_groups import Group, by_crowding, by_size, by_truncation
from ssd.inference.pictures import TRUTH, class_colour, draw_boxes, jpeg, scaled_into

MEANINGS = {
    "localisation": "right class, but the box overlaps the object by only 0.1 to 0.5",
    "classification": "good box, wrong class",
    "duplicate": "second detection of an object",
    "background": "no object there",
    "both": "wrong class, and the box overlaps the object by only 0.1 to 0.5",
    "missed": "object without a detection",
}
MARGIN = 0.75  # of a box's sides, shown around it
LEAST_SHOWN = 120  # pixels of a photo
PICTURE = 300  # maximum side, pixels


def kinds_table(errors: Errors, score_thresh: float) -> str:
    """Return a table of the kinds of errors by falling impact on mAP."""
    counts, largest = errors.counts(score_thresh), max(np.nan_to_num([*errors.map_impact.values()]).max(), 1e-9)
    rows = "".join(
        f"<tr><td>{kind}<td>{lost:.3f}<td class=bar>{bar(lost / largest)}<td>{counts[kind]:,}<td class=text>{MEANINGS[kind]}"
        for kind, lost in sorted(errors.map_impact.items(), key=lambda item: -item[1])
    )
    head = "<tr><th>kind<th>mAP lost<th><th>errors<th>"
    return f"<div class=wide><table>{head}{rows}</table></div>"


def groups_tables(
    errors: Errors,
    ground_truth: Sequence[Mapping[str, np.ndarray]],
    sizes: np.ndarray,
    side: int,
    edges: Sequence[int],
    score_thresh: float,
) -> str:
    """Return tables of the share of objects found, and AP, by size, crowding and truncation.

    Args:
        errors: of the photos.
        ground_truth: its objects, one entry for each photo.
        sizes: `[n, 2]` width and height of every photo.
        side: of the network's input, in pixels.
        edges: limits of the groups by size, in pixels of that input.
        score_thresh: minimum score of a detection that finds an object.
    """
    tables = {
        "side": by_size(errors, sizes, side, edges, score_thresh),
        "crowding": by_crowding(errors, score_thresh),
        "truncation": by_truncation(errors, ground_truth, score_thresh),
    }
    return "<div class=grid>" + "".join(group_table(title, groups) for title, groups in tables.items() if groups) + "</div>"


def group_table(title: str, groups: Sequence[Group]) -> str:
    rows = "".join(
        f"<tr><td>{name}<td>{num_objects:,}<td>{found:.0%}<td>{ap:.3f}<td class=bar>{bar(ap)}"
        for name, num_objects, found, ap in groups
    )
    return f"<div class=wide><table><tr><th>{title}<th>objects<th>found<th>AP<th>{rows}</table></div>"


def bar(share: float) -> str:
    """Return a bar that fills a share 0..1 of its column."""
    return f"<i style='width:{100 * np.nan_to_num(share):.0f}%'></i>"


def faults_pictures(
    errors: Errors, faults: Faults, classes: Sequence[str], names: Sequence[str], image: Callable[[int], np.ndarray], count: int
) -> str:
    """Return pictures of the likeliest label faults: the label in white, the detection in the colour of its class.

    Args:
        errors: of the photos.
        faults: in its labels.
        classes: names.
        names: of the photos.
        image: returns a photo, `[H, W, 3]` uint8 RGB.
        count: number of pictures.
    """
    cells = []
    for rank in range(min(count, len(faults.kind))):
        number = int(faults.image[rank])
        name, text = html.escape(names[number]), html.escape(fault_text(errors, faults, classes, rank))
        picture = jpeg(fault_picture(errors, faults, classes, image(number), rank))
        cells.append(f"<figure><img alt='' src='{picture}'><figcaption>{rank + 1}. {name}: {text}</figcaption></figure>")
    return f"<div class=small>{''.join(cells)}</div>" if cells else "<p class=note>None.</p>"


def fault_text(errors: Errors, faults: Faults, classes: Sequence[str], rank: int) -> str:
    """Describe one fault."""
    kind, found, of_object = (int(part[rank]) for part in (faults.kind, faults.detection, faults.object))
    label = "" if kind == MISSING else classes[int(errors.objects.labels[of_object])]
    sure = "" if found < 0 else f"{classes[int(errors.found.labels[found])]} {errors.found.values[found]:.2f}"
    if kind == MISSING:
        return f"missing label? {sure}"
    if kind == NOTHING_THERE:
        return f"{label}: nothing there?"
    return f"{label}: {FAULTS[kind]}? {sure if kind == WRONG_CLASS else f'overlap {errors.overlap[found]:.2f}'}"


def fault_picture(errors: Errors, faults: Faults, classes: Sequence[str], image: np.ndarray, rank: int) -> np.ndarray:
    """Draw one fault in the part of its photo around it `[h, w, 3]` uint8 RGB."""
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
    """Return the part of a photo around boxes `[n, 4]` (edges), as edges in whole pixels."""
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    around = np.maximum(MARGIN * (high - low), (LEAST_SHOWN - (high - low)) / 2)
    left, top = np.clip(low - around, 0, [width - 1, height - 1]).astype(int).tolist()
    right, bottom = np.clip(high + around, [left + 1, top + 1], [width, height]).astype(int).tolist()
    return left, top, right, bottom
