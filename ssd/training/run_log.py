"""What a run tells while it trains: lines and a bar for who watches, records and TensorBoard for later."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from data.loader import Samples
from ssd.evaluation.evaluate import Evaluation
from ssd.system.errors import optional
from ssd.training.pictures import detections_picture, samples_picture
from ssd.training.progress import Progress
from ssd.training.records import THRESHOLDS, RecordFile
from ssd.weights.checkpoint import TrainState


class RunLog:
    """The log of one run; on other processes than the main one it is silent.

    Args:
        folder: of the run.
        iterations: of the whole run.
        state: where it begins.
        val_samples: that it is evaluated on.
        visible: whether this process speaks and writes.
    """

    def __init__(self, folder: Path, iterations: int, state: TrainState, val_samples: Samples, visible: bool) -> None:
        self.val_samples = val_samples
        self.records = RecordFile(folder, state.iteration, state.evaluated_at) if visible else None
        self.progress = Progress(iterations, state.iteration, visible)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.close()
        if self.records:
            self.records.close()

    def say(self, text: str) -> None:
        """A line for the user."""
        self.progress.say(text)

    def step(self) -> None:
        """One more iteration is done."""
        self.progress.step()

    def trained(self, epoch: int, iteration: int, values: Mapping[str, Any], seconds_left: float) -> None:
        """A train record."""
        if self.records:
            self.records.write("train", epoch, iteration, values)
        self.progress.show(epoch, iteration, {**values, "seconds_left": seconds_left})

    def evaluated(self, epoch: int, iteration: int, evaluation: Evaluation) -> None:
        """An eval record, and its figures for the user."""
        if self.records:
            self.records.write("eval", epoch, iteration, evaluation.record())
        self.say(evaluation.table())
        self.say(evaluation.summary)

    def picture_samples(self, samples: Samples) -> None:
        """Training samples as the network gets them, for TensorBoard."""
        if self.records:
            with optional("the picture of training samples"):
                self.records.picture("augmented samples", samples_picture(samples), 0)

    def illustrate(self, evaluation: Evaluation, iteration: int) -> None:
        """Detections, and each class's precision by recall, for TensorBoard."""
        if not self.records:
            return
        with optional("the picture of validation photos"):
            self.records.picture("validation photos", detections_picture(self.val_samples, evaluation), iteration)
        result = evaluation.result
        with optional("the curves of precision by recall"):
            for label in np.flatnonzero(result.num_objects).tolist():
                name = f"precision-recall/{evaluation.classes[label]}"
                self.records.pr_curve(name, result.num_objects[label], result.at(label, THRESHOLDS), iteration)
