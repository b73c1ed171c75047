"""What comes of a run: its figure, the report, a picture."""

from pathlib import Path

import cv2
import numpy as np

from data.coverage import EDGES
from data.loader import Samples
from ssd.evaluation.evaluate import Evaluation
from ssd.evaluation.label_faults import label_faults
from ssd.evaluation.report import Subject, write_report
from ssd.system.device import device_name
from ssd.system.errors import optional
from ssd.system.files import write_whole
from ssd.training.label_files import write_faults
from ssd.training.pictures import detections_picture
from ssd.training.records import read_records
from ssd.training.run import Run
from ssd.training.trainer import Best


def finish(run: Run, samples: Samples, path: Path, best: Best) -> None:
    """The picture and the report of a checkpoint, where everything lies, and at last whose figure it is and the figure.

    Args:
        run: the run.
        samples: the validation photos.
        path: of the checkpoint.
        best: its evaluation.
    """
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
        subject = report_subject(run, samples, evaluation, f"{path.name}, iteration {best.iteration}")
        with optional(labels):
            count = write_faults(labels, ["coco"], evaluation, subject.faults, subject.names, samples.photos.sizes)
            run.say(f"labels to look at ({count}): {labels / 'coco.json'}")
        write_report(report, subject)
        run.say(f"report: {report}")
    score, f1 = evaluation.best_score()
    run.say(f"best F1 {f1:.3f}, with scores from {score:.2f} on: what to give scripts/detect.py as --score")
    run.say(f"{path}, iteration {best.iteration}:")
    run.say(evaluation.summary)


def report_subject(run: Run, samples: Samples, evaluation: Evaluation, checkpoint: str) -> Subject:
    photos = samples.photos
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
    return Subject(
        title=f"SSD300: {run.folder.name}",
        evaluation=evaluation,
        ground_truth=[photos.ground_truth(i) for i in range(len(photos))],
        names=photos.names(),
        image=samples.image,
        records=records,
        config=run.config.model_dump(mode="json"),
        facts=facts,
        sizes=photos.sizes,
        edges=EDGES,
        faults=label_faults(evaluation.errors, len(evaluation.classes)),
    )
