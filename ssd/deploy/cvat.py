"""Label the photos of a CVAT task with a network:

    cvat-cli task auto-annotate 7 --function-module ssd.deploy.cvat -p checkpoint=str:runs/mine/checkpoints/best.pt

cvat-cli calls `create` with the arguments of -p and matches labels by name. It is a package of its own: pip install cvat-cli.
"""

from typing import Any

from PIL import Image

from ssd.inference.predictor import Predictor
from ssd.weights.sources import DEFAULT


class Detection:
    """CVAT's protocol `DetectionFunction`."""

    def __init__(self, predictor: Predictor) -> None:
        from cvat_sdk import auto_annotation as cvat  # pyright: ignore[reportMissingImports]

        self.predictor = predictor
        self.rectangle = cvat.rectangle
        self.spec = cvat.DetectionFunctionSpec(
            labels=[cvat.label_spec(name, number, type="rectangle") for number, name in enumerate(predictor.classes)]
        )

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """Return the shapes in one frame, with the labels' numbers in `spec`. `context` has the options of cvat-cli."""
        (found,) = self.predictor(image)
        return [
            self.rectangle(int(label), box.tolist())
            for box, label, score in zip(found.boxes, found.labels, found.scores, strict=True)
            if score >= (context.conf_threshold or 0)
        ]


def create(checkpoint: str = DEFAULT, score: float | None = None, device: str = "auto") -> Detection:
    """Load a checkpoint.

    Args:
        checkpoint: path, or the name of shipped weights.
        score: minimum score of a detection; by default 0.5, or those of the shipped weights.
        device: auto | cpu | mps | cuda | cuda:N.

    Raises:
        CheckpointError: the checkpoint cannot be used.
    """
    return Detection(Predictor.from_checkpoint(checkpoint, device, score_thresh=score))
