"""Find probable label errors in a run's photos with its network."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from ssd.config.file import parse_config
from ssd.deploy.detection import output_folder
from ssd.deploy.label_files import write_faults
from ssd.evaluation.failures import faults_pictures
from ssd.evaluation.label_faults import label_faults
from ssd.evaluation.report import page
from ssd.preprocessing import Preprocessing
from ssd.system.files import write_text
from ssd.system.stop import StopRequest
from ssd.training.build import place
from ssd.training.datasets import eval_dataset, load_part
from ssd.training.run import open_run
from ssd.training.validate import evaluate_photos
from ssd.weights.checkpoint import CheckpointError, load_checkpoint
from ssd.weights.pretrained import network_of

# No training, so the run's own device and precision are not needed.
ANYWHERE = ("device=auto", "train.precision=auto", "train.compile=false")


def check_labels(
    checkpoint: Path,
    part: Literal["train", "val"],
    output: Path | None,
    formats: Collection[str],
    num_pictured: int,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
) -> tuple[Path, int]:
    """Find faults in the labels that a checkpoint's run was trained or evaluated on.

    Args:
        checkpoint: a run's checkpoint.
        output: output folder; by default labels_train or labels_val in the run's folder.
        formats: formats of the files for labelling tools.
        num_pictured: number of faults on the page.
        overwrite: write into a folder that is not empty.
        overrides: `key=value`, changes to the run's configuration. Device and precision default to auto.

    Returns:
        The folder, and the number of faults in the files.

    Raises:
        UsageError: `output` is a file, or is not empty.
        CheckpointError, ConfigError, DataError: the checkpoint, its configuration or its data cannot be used.
        Stopped: on request.
    """
    state = load_checkpoint(checkpoint)
    if not state.config.get("data", {}).get(part):
        raise CheckpointError(f"{checkpoint}: contains only weights and names no photos; use checkpoints/best.pt of a run")
    config = parse_config(state.config, str(checkpoint), [*ANYWHERE, *overrides])
    model, preprocessing = network_of(state), Preprocessing.from_plain(state.preprocessing)
    with StopRequest().listening() as stop, open_run(config, stop) as run:
        folder = output_folder(output, overwrite, run.folder / f"labels_{part}")
        samples = eval_dataset(run, load_part(run, part), preprocessing)
        place(run, model, None)
        evaluation = evaluate_photos(run, samples, preprocessing, model)
    photos = samples.photos
    faults = label_faults(evaluation.errors, len(evaluation.classes))
    names = photos.names()
    count = write_faults(folder, formats, evaluation, faults, names, photos.sizes)
    title = f"Labels of data.{part} that may be wrong"
    note = (
        f"{len(photos):,} photos, {len(photos.labels):,} labels; {evaluation.summary}. The likeliest of each kind in turn. "
        "Labels in white, detections in colour."
    )
    pictures = faults_pictures(evaluation.errors, faults, evaluation.classes, names, samples.image, num_pictured)
    text = page(title, [f"<h1>{title}</h1><p class=note>{note}</p>", pictures])
    write_text(folder / "labels.html", text)
    return folder, count
