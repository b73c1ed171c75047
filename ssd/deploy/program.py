"""An exported file at work, as its user runs it, and compared with the checkpoint that it comes from."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from ssd.deploy.export import INPUT, OUTPUTS
from ssd.inference.predictor import Detections, Predictor
from ssd.system.errors import Failure

Program = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]  # [B, H, W, 3] → boxes, labels, scores

# Differences that rounding alone can make.
MAX_BOX_DIFFERENCE = 0.5  # pixels
MAX_SCORE_DIFFERENCE = 1e-3


def load_program(path: Path, kind: str, device: torch.device) -> tuple[Program, dict[str, str]]:
    """What a user of the file would run, and the metadata in it."""
    if kind == "onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda images: session.run(list(OUTPUTS), {INPUT: images}), session.get_modelmeta().custom_metadata_map  # pyright: ignore
    extra = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=extra).module()

    @torch.no_grad()
    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        boxes, labels, scores = (values.cpu().numpy() for values in program(torch.from_numpy(images).to(device)))
        return boxes, labels, scores

    return run, json.loads(extra["metadata.json"])


def sparse_photos(predictor: Predictor, photos: list[np.ndarray]) -> dict[str, np.ndarray]:
    """A blank photo, and one with a single object where one can be made of the photos, by what they are called.

    Programs fail there first: non-maximum suppression leaves no box, or one.
    """
    fill = predictor.preprocessing.fill
    made = {"a blank photo": np.full_like(photos[0], fill)}
    for photo in photos:
        alone = np.full_like(photo, fill)
        for x1, y1, x2, y2 in predictor.detect([photo])[0].boxes[:1].round().astype(int).tolist():
            alone[y1:y2, x1:x2] = photo[y1:y2, x1:x2]
        if len(predictor.detect([alone])[0].labels) == 1:
            return {**made, "an object alone": alone}
    return made


def check(run: Program, predictor: Predictor, photos: list[np.ndarray]) -> None:
    """Compares the file's detections with the checkpoint's, also in photos with few, and says how far they lie apart.

    Raises:
        Failure: farther than rounding explains; or there are none to compare.
    """
    num_detections, box_difference, score_difference = compare(run, predictor, photos)
    sparse = sparse_photos(predictor, photos)
    for photo in sparse.values():
        num_found, *differences = compare(run, predictor, [photo])
        if num_found < 2:  # equal scores, such as a poor network gives all over a blank photo, are in any order
            box_difference, score_difference = max(box_difference, differences[0]), max(score_difference, differences[1])
    print(
        f"checked on {len(photos)} photos with {num_detections} detections, {', '.join(sparse)}: boxes differ from the "
        f"checkpoint's by at most {box_difference:.3f} pixels, scores by {score_difference:.1e}"
    )
    if box_difference > MAX_BOX_DIFFERENCE or score_difference > MAX_SCORE_DIFFERENCE:
        raise Failure(f"more than {MAX_BOX_DIFFERENCE} pixels or {MAX_SCORE_DIFFERENCE}; do not use the file")
    if not num_detections:
        raise Failure(
            f"not checked: in {len(photos)} photos nothing is found from score {predictor.limits.score_thresh:g} on; "
            "lower --score, or name other --photos"
        )


def compare(run: Program, predictor: Predictor, photos: list[np.ndarray]) -> tuple[int, float, float]:
    """The number of detections, and how far those of the file lie from the checkpoint's: boxes in pixels, scores.

    A detection that the other side has no like of counts as infinitely far, unless its score is at the threshold itself.
    """
    total, box_difference, score_difference = 0, 0.0, 0.0
    for photo in photos:
        boxes, labels, scores = (values[0] for values in run(photo[None]))
        is_detection = labels >= 0
        theirs = Detections(boxes[is_detection], labels[is_detection], scores[is_detection], [])
        (ours,) = predictor.detect([photo])
        total += len(ours.labels)
        for one, other in ((ours, theirs), (theirs, ours)):
            sure = one.scores > predictor.limits.score_thresh + MAX_SCORE_DIFFERENCE
            apart = np.abs(one.boxes[sure, None] - other.boxes).max(axis=2, initial=0)  # [n, m]
            apart[one.labels[sure, None] != other.labels] = np.inf
            apart = np.concatenate([apart, np.full((len(apart), 1), np.inf)], axis=1)
            nearest = apart.argmin(axis=1)
            box_difference = max(box_difference, apart.min(axis=1).max(initial=0))
            score_difference = max(
                score_difference, np.abs(np.append(other.scores, np.inf)[nearest] - one.scores[sure]).max(initial=0)
            )
    return total, box_difference, score_difference
