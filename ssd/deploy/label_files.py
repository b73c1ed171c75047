"""Files for labelling tools with the labels that may be wrong."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from ssd.boxes import voc_to_edges
from ssd.deploy.results import FrameDetections, Results
from ssd.evaluation.evaluate import Evaluation
from ssd.evaluation.label_faults import FAULTS, NOTHING_THERE, Faults
from ssd.inference.predict import Detections

LISTED = 0.1  # share of the faults to write, at least LEAST_LISTED
LEAST_LISTED = 100


def write_faults(
    folder: Path, formats: Collection[str], evaluation: Evaluation, faults: Faults, names: Sequence[str], sizes: np.ndarray
) -> int:
    """Write the likeliest faults in the formats of `ssd.deploy.results`, and return their number.

    A fault has the box and class of the detection that contradicts the label, or of the label if there is none. Its name says
    what may be wrong. Scores fall from 1 for the first of all faults to 0 for the last.

    Args:
        folder: created if missing.
        formats: keys of `ssd.deploy.results.FORMATS`.
        evaluation: of the data set.
        faults: in its labels.
        names: of the photos.
        sizes: `[n, 2]` width and height of the photos, pixels.
    """
    errors, count = evaluation.errors, min(len(faults.kind), max(LEAST_LISTED, int(LISTED * len(faults.kind))))
    kind, image, of_object, found = (part[:count] for part in (faults.kind, faults.image, faults.object, faults.detection))
    is_unseen = kind == NOTHING_THERE
    boxes = np.where(is_unseen[:, None], errors.objects.boxes[of_object], errors.found.boxes[found])
    labels = np.where(is_unseen, errors.objects.labels[of_object], errors.found.labels[found])
    texts = [f"{FAULTS[k]}: {evaluation.classes[label]}" for k, label in zip(kind.tolist(), labels.tolist(), strict=True)]
    categories = sorted(set(texts))
    numbers = np.array([categories.index(text) for text in texts], np.int64)
    scores = 1 - np.arange(count) / max(len(faults.kind) - 1, 1)
    folder.mkdir(parents=True, exist_ok=True)
    with Results(folder, formats, categories) as results:
        in_turn: list[int] = list(dict.fromkeys(image.tolist()))  # photos with the likeliest faults first
        for photo in in_turn:
            rows = np.flatnonzero(image == photo)
            detections = Detections(voc_to_edges(boxes[rows]), numbers[rows], scores[rows], [texts[row] for row in rows])
            results.add([FrameDetections(names[photo], None, int(sizes[photo, 0]), int(sizes[photo, 1]), detections)])
    return count
