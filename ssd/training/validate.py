"""Validation of a run: evaluate its network, compare the result with the best one, and at the end write picture and report.

`Trainer._evaluate_if_due` calls these after an evaluation: it records the result, saves best.pt, and stops if patience is over.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from torch import nn

from data.dataset.coverage import side_bins
from data.loading.dataset import DetectionDataset
from ssd.batch import Batch
from ssd.deploy.label_files import write_faults
from ssd.evaluation.evaluate import Evaluation, EvaluationData, evaluate
from ssd.evaluation.label_faults import label_faults
from ssd.evaluation.report import ReportInput, write_report
from ssd.inference.predict import PixelModel
from ssd.model import SSD
from ssd.preprocessing import Preprocessing
from ssd.system.device import device_name
from ssd.system.errors import optional
from ssd.system.files import write_whole
from ssd.training.build import build_criterion, build_model, use_batch_size_of
from ssd.training.checkpoints import FoundCheckpoint, checkpoint_at, checkpoint_to_evaluate, find_same_state
from ssd.training.datasets import eval_dataset, load_part, val_loader
from ssd.training.run import Run, require_same_config
from ssd.training.run_log import detections_picture, read_records
from ssd.weights.checkpoint import TrainState, load_checkpoint

# Smaller differences of mAP, and relative differences of the loss, are no improvement. Without these limits patience would
# wait as long as the last digits of the loss fall.
MAP_TOLERANCE, LOSS_TOLERANCE = 1e-9, 1e-4


class Best(NamedTuple):
    """The evaluation of the best checkpoint."""

    iteration: int
    evaluation: Evaluation


def evaluate_photos(
    run: Run, samples: DetectionDataset, preprocessing: Preprocessing, model: nn.Module, batches: Iterable[Batch] | None = None
) -> Evaluation:
    """Evaluate a network on photos.

    `batches` is this process's share of the photos, if their workers have already started.

    Raises:
        Stopped: on request.
    """
    photos = samples.photos
    model.eval()
    # On CPUs each process has its own statistics of batch normalisation; a checkpoint has the main one's.
    run.world.broadcast(model.buffers())
    ground_truth = [photos.ground_truth(i) for i in range(len(photos))]
    batches = batches or val_loader(run, samples)
    return evaluate(
        PixelModel(model, preprocessing, run.device, run.dtype),
        EvaluationData(run.threads.following(batches), samples.crops, photos.sizes, ground_truth, photos.classes),
        build_criterion(run.config, run.device),
        run.config.eval,
        run.world,
        run.stop,
    )


def compare_with_best(state: TrainState, evaluation: Evaluation) -> bool:
    """Enter an evaluation into a run's state, and return whether it is the best so far: by mAP, then by validation loss.

    NaN is never better.
    """
    state.evaluated_at = state.iteration
    gain = evaluation.mean_ap - state.best_map
    is_lower = evaluation.loss < (1 - LOSS_TOLERANCE) * state.best_loss
    is_better = gain > MAP_TOLERANCE or (abs(gain) <= MAP_TOLERANCE and is_lower)
    if is_better:
        state.best_map, state.best_loss = evaluation.mean_ap, min(math.inf, evaluation.loss)  # inf for NaN
        state.class_scores = evaluation.class_scores()
    state.not_improved = 0 if is_better else state.not_improved + 1
    return is_better


def is_patience_over(state: TrainState, patience: int | None) -> bool:
    """Return whether the last `patience` evaluations (`eval.patience`; None: no limit) brought no improvement.

    Patience begins with the first mAP above 0: before that, mAP does not show what the network learns.
    """
    return patience is not None and state.not_improved >= patience and state.best_map > 0


def evaluate_checkpoint(run: Run, path: Path, samples: DetectionDataset, preprocessing: Preprocessing, model: SSD) -> Best:
    """Evaluate a checkpoint of this run. The main process loads it for all, because the others may not see its disk."""
    iteration = 0
    if run.world.is_main:
        state = load_checkpoint(path)
        model.load_state_dict(state.weights)
        iteration = state.iteration
    iteration = run.world.all_gather(iteration)[0]
    run.world.broadcast(model.state_dict().values())
    return _evaluate(run, path, iteration, samples, preprocessing, model)


def eval_only(run: Run, resume: str | None) -> Best:
    """Evaluate a run's best checkpoint, or the one that `resume` names; write picture and report, and return the evaluation."""

    def find() -> FoundCheckpoint:
        return checkpoint_at(checkpoint_to_evaluate(run.folder) if resume in (None, "auto") else resume)

    require_same_config(run)
    path, state, skipped = find_same_state(run.world, find)
    for line in skipped:
        run.say(f"skipped: {line}")
    model, preprocessing = build_model(run, state)
    use_batch_size_of(run, state)
    samples = eval_dataset(run, load_part(run, "val"), preprocessing)
    best = _evaluate(run, path, state.iteration, samples, preprocessing, model)
    finish(run, samples, path, best)
    return best


def _evaluate(
    run: Run, path: Path, iteration: int, samples: DetectionDataset, preprocessing: Preprocessing, model: SSD
) -> Best:
    run.say(f"evaluating {path}, iteration {iteration}")
    evaluation = evaluate_photos(run, samples, preprocessing, model)
    run.say(f"{evaluation.table()}\n{evaluation.summary}")
    return Best(iteration, evaluation)


def finish(run: Run, samples: DetectionDataset, path: Path, best: Best) -> None:
    """Write the picture, the labels to check and the report of a checkpoint; print where they are, and last its mAP."""
    if not run.world.is_main:
        return
    evaluation = best.evaluation
    picture, report, labels = run.folder / "detections.png", run.folder / "report.html", run.folder / "labels"
    with optional(picture):
        run.folder.mkdir(parents=True, exist_ok=True)
        _, encoded = cv2.imencode(".png", cv2.cvtColor(detections_picture(samples, evaluation), cv2.COLOR_RGB2BGR))
        write_whole(picture, lambda file: file.write(encoded.tobytes()))
        run.say(f"picture: {picture}")
    with optional(report):
        content = report_input(run, samples, evaluation, f"{path.name}, iteration {best.iteration}")
        with optional(labels):
            count = write_faults(labels, ["coco"], evaluation, content.faults, content.names, samples.photos.sizes)
            run.say(f"labels to check ({count}): {labels / 'coco.json'}")
        write_report(report, content)
        run.say(f"report: {report}")
    score, f1 = evaluation.best_score()
    run.say(f"suggested --score {score:.2f} (best F1 {f1:.3f}); --score auto uses a threshold for each class")
    run.say(f"{path}, iteration {best.iteration}:")
    run.say(evaluation.summary)


def report_input(run: Run, samples: DetectionDataset, evaluation: Evaluation, checkpoint: str) -> ReportInput:
    """Collect the content of a report; `checkpoint` describes the evaluated checkpoint."""
    photos, architecture = samples.photos, run.config.model.row
    records = read_records(run.folder)
    trained = [record for record in records if record["kind"] == "train"]
    facts = {
        "run": str(run.folder),
        "checkpoint": checkpoint,
        "device": device_name(run.device),
        "precision": str(run.dtype).removeprefix("torch."),
        "processes": str(run.world.size),
    }
    if trained:
        batch_size = run.batch_size
        steps = np.diff([0, *(record["iteration"] for record in trained)])
        seconds = float(sum(step * batch_size / record["images_per_s"] for step, record in zip(steps, trained, strict=True)))
        facts["time training"] = f"{seconds / 60:.1f} minutes for {trained[-1]['iteration']:,} iterations"
        facts["images a second"] = f"{np.median([record['images_per_s'] for record in trained]):.1f}, median"
    facts["time of the evaluation"] = f"{evaluation.seconds:.1f} seconds"
    return ReportInput(
        title=f"{architecture.title}: {run.folder.name}",
        evaluation=evaluation,
        ground_truth=[photos.ground_truth(i) for i in range(len(photos))],
        names=photos.names(),
        image=samples.image,
        records=records,
        config=run.config.model_dump(mode="json"),
        facts=facts,
        sizes=photos.sizes,
        input_size=architecture.input_size,
        edges=side_bins(architecture.input_size),
        faults=label_faults(evaluation.errors, len(evaluation.classes)),
    )
