"""Checks of an exported file: run it as a user would, and compare it with the checkpoint."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from ssd.deploy import decode_heads, raw_heads
from ssd.deploy.export import INPUT, OUTPUTS
from ssd.inference.predict import Detections
from ssd.inference.predictor import Predictor
from ssd.preprocessing import shrink
from ssd.system.errors import Failure

Program = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]  # [B, H, W, 3] → boxes, labels, scores

# Largest differences from rounding.
MAX_BOX_DIFFERENCE = 0.5  # pixels
MAX_SCORE_DIFFERENCE = 1e-3


def load_program(path: Path) -> tuple[Program, dict[str, str]]:
    """Return the file as a function, and its metadata."""
    session = _session(str(path))
    return _complete(session), session.get_modelmeta().custom_metadata_map


def program_of(graph: onnx.ModelProto) -> Program:
    """Return a complete graph as a function."""
    return _complete(_session(graph.SerializeToString()))


def _complete(session: onnxruntime.InferenceSession) -> Program:
    """Return a complete network as a function that averages large photos before, as scripts/run_onnx.py does."""
    size = int(session.get_modelmeta().custom_metadata_map["input_size"])

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        small = np.stack([shrink(image, size) for image in images])
        boxes, labels, scores = session.run(list(OUTPUTS), {INPUT: small})
        scale = np.array([images.shape[2] / small.shape[2], images.shape[1] / small.shape[1]] * 2, np.float32)
        return boxes * scale, labels, scores  # pyright: ignore

    return run


def raw_program_of(graph: onnx.ModelProto, settings: dict[str, Any]) -> Program:
    """Return a raw network with its decoding as a function of one photo, which fills all places of the batch."""
    session = _session(graph.SerializeToString())

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        (photo,) = images
        batch = decode_heads.prepare([photo] * settings["input"]["shape"][0], settings)
        loc, conf = session.run(list(raw_heads.OUTPUTS), {INPUT: batch})
        boxes, labels, scores = decode_heads.decode(loc[-1], conf[-1], photo.shape, settings)  # pyright: ignore
        return boxes[None], labels[None], scores[None]

    return run


def _session(source: str | bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])


def real_detections(outputs: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Detections:
    """Return the detections in the first image of a file's outputs, without unused places."""
    boxes, labels, scores = (values[0] for values in outputs)
    is_detection = labels >= 0
    return Detections(boxes[is_detection], labels[is_detection], scores[is_detection])


def detections_of(run: Program, photos: Iterable[np.ndarray]) -> list[Detections]:
    """Return a program's detections in photos of any sizes."""
    return [real_detections(run(photo[None])) for photo in photos]


def sparse_photos(predictor: Predictor, photos: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return, by name, a blank photo and, if the photos yield one, a photo with a single object.

    Exported files fail there first: non-maximum suppression keeps no box, or one.
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
    """Compare the file's detections with the checkpoint's, on photos and on sparse ones, and print the differences.

    Raises:
        Failure: rounding does not explain the differences, or there are no detections to compare.
    """
    num_detections, box_difference, score_difference = compare(run, predictor, photos)
    sparse = sparse_photos(predictor, photos)
    for photo in sparse.values():
        num_found, *differences = compare(run, predictor, [photo])
        if num_found < 2:  # a poor network gives equal scores all over a blank photo, in any order
            box_difference, score_difference = max(box_difference, differences[0]), max(score_difference, differences[1])
    print(
        f"checked on {len(photos)} photos with {num_detections} detections, {', '.join(sparse)}: boxes differ from the "
        f"checkpoint's by at most {box_difference:.3f} pixels, scores by {score_difference:.1e}"
    )
    if box_difference > MAX_BOX_DIFFERENCE or score_difference > MAX_SCORE_DIFFERENCE:
        raise Failure(f"differences over {MAX_BOX_DIFFERENCE} pixels or {MAX_SCORE_DIFFERENCE}; do not use the file")
    if not num_detections:
        raise Failure(
            f"not checked: no detections with scores from {predictor.options.score_thresh:g} in {len(photos)} photos; "
            "lower --score, or name other --photos"
        )


def compare(run: Program, predictor: Predictor, photos: list[np.ndarray]) -> tuple[int, float, float]:
    """Return the number of detections and the largest differences between file and checkpoint: boxes in pixels, and scores.

    A detection without a counterpart counts as an infinite difference, unless its score is within rounding of the threshold.
    """
    total, box_difference, score_difference = 0, 0.0, 0.0
    least = np.maximum(predictor.class_scores, predictor.options.score_thresh)
    for photo in photos:
        theirs = real_detections(run(photo[None]))
        (ours,) = predictor.detect([photo])
        total += len(ours.labels)
        for one, other in ((ours, theirs), (theirs, ours)):
            sure = one.scores > least[one.labels] + MAX_SCORE_DIFFERENCE
            apart = np.abs(one.boxes[sure, None] - other.boxes).max(axis=2, initial=0)  # [n, m]
            apart[one.labels[sure, None] != other.labels] = np.inf
            apart = np.concatenate([apart, np.full((len(apart), 1), np.inf)], axis=1)
            nearest = apart.argmin(axis=1)
            box_difference = max(box_difference, apart.min(axis=1).max(initial=0))
            score_difference = max(
                score_difference, np.abs(np.append(other.scores, np.inf)[nearest] - one.scores[sure]).max(initial=0)
            )
    return total, box_difference, score_difference
