"""Trains SSD300, an object detector, on photos with boxes, as a YAML file says: python train.py --config FILE

    python scripts/new_config.py datasets/mine                writes such a file for a folder of photos
    python train.py --config configs/mine.yaml --dry-run      tells what the run will take
    python train.py --config configs/mine.yaml                trains; Ctrl-C saves and ends
    python train.py --config configs/mine.yaml --resume auto  goes on from there
    python train.py --config configs/mine.yaml --eval-only    evaluates the best checkpoint, and writes the report anew

What comes of it lies in the file's output_dir (runs/mine): report.html to look at, checkpoints/best.pt to detect with by
scripts/detect.py. docs/configuration.md explains every entry of the file. On several GPUs the same command goes behind
torchrun --nproc-per-node N.
"""

import argparse
import errno
import os
import resource
import sys
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from data.annotation import DataError
from data.augment import Switches
from data.image_cache import ImageCache
from data.loader import EvalOrder, Samples, TrainOrder, choose_workers, make_loader
from data.photos import Loaded, Photos
from data.photos import load_photos as read_photos
from ssd.batch import Batch
from ssd.boxes import voc_to_edges
from ssd.config import ConfigError
from ssd.config_file import load_config
from ssd.evaluation.evaluate import Evaluation, Interrupted, Thresholds, evaluate
from ssd.evaluation.pictures import TRUTH, contact_sheet, draw_boxes
from ssd.evaluation.report import Subject, write_report
from ssd.model import SSD300
from ssd.preparation import Preparation
from ssd.system.device import choose_device, choose_precision, keep_freed_memory
from ssd.system.distributed import World, is_lost_peer, process_group, world_from_environment
from ssd.system.errors import UsageError
from ssd.system.stop import Stopped, StopRequest
from ssd.training.folder import checkpoint_to_evaluate, find_state, locked, make_folder
from ssd.training.progress import Progress, duration
from ssd.training.records import THRESHOLDS, Records, read_records
from ssd.training.replay import Fault, save_fault
from ssd.training.run import Run, build_model, build_schedule, build_trainer, settle_batch_size, use_batch_size_of
from ssd.training.trainer import NonFiniteError, Schedule
from ssd.weights.checkpoint import CheckpointError, TrainState, first_line, load_checkpoint

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DRY_STEPS = 3
MAX_FAULTS = 50  # lines of one error message
PICTURED = 8  # validation photos in detections.png


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = parse_arguments(arguments)
    world = world_from_environment()
    stop = StopRequest()
    stop.listen()
    try:
        config = load_config(options.config, options.overrides)
        device = choose_device(config.device, world.local_rank)
        dtype = choose_precision(config.train.precision, device)
        keep_freed_memory()
        run = Run(config, world, device, dtype, Path(config.output_dir), stop)
        with process_group(world, device):
            if options.eval_only:
                eval_only(run, options.resume)
            elif options.dry_run:
                dry_run(run)
            else:
                stop.after(config.train.max_hours)
                with locked(run.folder, world):
                    train(run, options.resume, options.overwrite)
    except Stopped as stopped:
        if world.is_main:
            print(f"{stopped}; go on with --resume auto", flush=True)
        return stopped.exit_code
    except (ConfigError, DataError, CheckpointError, UsageError) as error:
        return _refuse(world, error, 2)
    except NonFiniteError as error:
        return _refuse(world, error, 1)
    except OSError as error:
        hint = "; make room and go on with --resume auto" if error.errno in DISK_FULL else ""
        return _refuse(world, f"{error.filename}: {error.strerror}{hint}" if error.filename else error, 1)
    except RuntimeError as error:
        reason = explain(error, world)
        if reason is None:
            raise
        print(f"error: {reason}; go on with --resume auto", file=sys.stderr)
        return 1
    return 0


def explain(error: RuntimeError, world: World) -> str | None:
    """What PyTorch's error means, where it is not a fault of the program."""
    text = first_line(error)
    if text.startswith("DataLoader worker"):
        return f"{text}: out of memory or of shared memory (/dev/shm)? Try fewer data.workers, or 0"
    if isinstance(error, torch.OutOfMemoryError):
        return f"{text} Try train.batch_size=auto, a smaller one, or a larger train.accumulate, which changes nothing else"
    if is_lost_peer(error, world):
        return f"process {world.rank} of {world.size}: another process of this run has ended; its own message says why"
    return None


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="FILE", help="the YAML file that describes the run")
    parser.add_argument(
        "--resume",
        metavar="auto|PATH",
        help="go on from a checkpoint; auto: the newest whole one in output_dir, or from the start if there is none",
    )
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate output_dir's best checkpoint, or the one --resume names"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, do a few steps and a short evaluation, tell what the run will take, write nothing",
    )
    parser.add_argument("--overwrite", action="store_true", help="start anew over an earlier run in output_dir")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="change an entry of the configuration, such as train.lr=5e-4"
    )
    return parser.parse_intermixed_args(arguments)


def _refuse(world: World, error: Exception | str, code: int) -> int:
    if world.is_main:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
    return code


def train(run: Run, resume: str | None, overwrite: bool) -> None:
    """Trains to the end of the schedule, from the start or from a checkpoint."""
    state = find_state(run.folder, resume, overwrite, run.say)
    train_photos, val_photos = load_photos(run, train_too=True)
    model, preparation = build_model(run, state)
    samples = train_samples(run, train_photos, preparation)
    settle_batch_size(run, model, preparation, len(samples), partial(crowded_batch, samples), state)
    config = run.config
    schedule = build_schedule(run, len(train_photos))
    trainer = build_trainer(run, model, preparation, schedule)
    if state is not None:
        trainer.restore(state)
    order = TrainOrder(
        len(train_photos), run.batch_size, schedule.iterations, config.seed, trainer.iteration,
        config.train.accumulate, run.world,
    )  # fmt: skip
    make_folder(run.folder, config.model_dump(mode="json"), state is None, run.world)
    loader = make_loader(samples, order, choose_workers(config.data.workers, run.device, run.world), run.device)
    val_samples = Samples(val_photos, preparation.size, preparation.fill)
    describe(run, model, schedule, train_photos, val_photos, trainer.iteration)
    records = Records(run.folder, trainer.iteration, trainer.evaluated_at) if run.world.is_main else None
    if records and trainer.iteration == 0:
        records.picture("augmented samples", samples_picture(samples, len(train_photos)), 0)

    def evaluate_and_show(network: nn.Module) -> Evaluation:
        evaluation = evaluate_photos(run, network, val_samples, preparation)
        if records:
            records.picture("validation photos", detections_picture(val_samples, evaluation), trainer.iteration)
            result = evaluation.result
            for label in np.flatnonzero(result.num_objects).tolist():
                name = f"precision-recall/{evaluation.classes[label]}"
                records.pr_curve(name, result.num_objects[label], result.at(label, THRESHOLDS), trainer.iteration)
        return evaluation

    with Progress(schedule.iterations, trainer.iteration, run.world.is_main) as progress:
        try:
            evaluation = trainer.fit(loader, evaluate_and_show, records, progress, run.stop)
        except NonFiniteError as error:
            advice = keep_fault(run, samples, model, preparation, error.iteration)
            raise NonFiniteError(error.iteration, advice) from None
    if records:
        records.close()
    if evaluation is None:
        run.say("nothing left to train; the run is evaluated once more")
        evaluation = evaluate_state(run, val_samples, model, preparation, trainer.state())
    finish(run, val_samples, evaluation)


def eval_only(run: Run, resume: str | None) -> None:
    """Evaluates a checkpoint on the validation photos."""
    path = Path(resume) if resume not in (None, "auto") else checkpoint_to_evaluate(run.folder)
    state = load_checkpoint(path)
    run.say(f"evaluating {path}, iteration {state.iteration}")
    model, preparation = build_model(run, state)
    use_batch_size_of(run, state)
    _, val_photos = load_photos(run, train_too=False)
    val_samples = Samples(val_photos, preparation.size, preparation.fill)
    finish(run, val_samples, evaluate_state(run, val_samples, model, preparation, state))


def dry_run(run: Run) -> None:
    """Does what training does, for a few steps, and tells what the whole of it will take. Writes nothing."""
    train_photos, val_photos = load_photos(run, train_too=True)
    model, preparation = build_model(run, None)
    samples = train_samples(run, train_photos, preparation)
    settle_batch_size(run, model, preparation, len(samples), partial(crowded_batch, samples), None)
    config = run.config
    schedule = build_schedule(run, len(train_photos))
    trainer = build_trainer(run, model, preparation, schedule)
    describe(run, model, schedule, train_photos, val_photos, 0)
    steps = DRY_STEPS + 1
    order = TrainOrder(len(train_photos), run.batch_size, steps, config.seed, 0, config.train.accumulate, run.world)
    batches = iter(make_loader(samples, order, choose_workers(config.data.workers, run.device, run.world), run.device))
    start = 0.0
    for step in range(steps):
        if step == 1:  # the first one warms up
            start = time.perf_counter()
        if run.stop():
            raise Stopped(run.stop.signal)
        trainer.train_step([next(batches) for _ in range(config.train.accumulate)])
        float(trainer.window.sum())  # waits for the device
    seconds = (time.perf_counter() - start) / DRY_STEPS
    some = val_photos.select(range(min(len(val_photos), 2 * config.eval.batch_size)))
    try:
        evaluation = evaluate_photos(run, model, Samples(some, preparation.size, preparation.fill), preparation)
    except Interrupted:
        raise Stopped(run.stop.signal) from None
    per_evaluation = evaluation.seconds / len(some) * len(val_photos)
    evaluations = -(-schedule.iterations // schedule.eval_every)
    whole = duration(schedule.iterations * seconds + evaluations * per_evaluation)
    if run.device.type == "cuda":
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of the GPU's memory"
    else:
        memory = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB of memory"
    run.say(f"a step takes {seconds:.2f} s ({run.batch_size / seconds:.1f} images/s) and {memory}")
    run.say(f"the run will take about {whole}: {schedule.iterations} steps and {evaluations} evaluations")


def load_photos(run: Run, train_too: bool, max_faults: int | None = MAX_FAULTS) -> tuple[Photos, Photos]:
    """Training photos (the validation photos again where they are not wanted) and validation photos.

    Raises:
        DataError: with the faults of both, all of them or the first `max_faults`.
    """
    faults: list[str] = []
    loaded: dict[str, Loaded] = {}

    def load() -> None:
        for part in ("train", "val") if train_too else ("val",):
            try:
                loaded[part] = load_part(run, part)
            except DataError as error:
                faults.extend(str(error).splitlines())

    if run.world.is_main:  # the others need not look again at what is remembered then
        load()
    faults = run.world.share(list(dict.fromkeys(faults)))  # of a folder that both name, once
    if faults:
        more = len(faults) - len(faults[:max_faults])
        rest = [f"... and {more} more faults; scripts/check_data.py lists them all"] if more else []
        raise DataError("\n".join(faults[:max_faults] + rest))
    if not run.world.is_main:
        load()
    for part, result in loaded.items():
        for note in result.notes:
            run.say(f"data.{part}: {note}")
    photos = {part: result.photos for part, result in loaded.items()}
    if train_too:
        for name in photos["train"].absent_classes():
            run.say(f"warning: data.train has no object of class {name!r}; it cannot be learned")
        shared = photos["train"].shared_with(photos["val"])
        if shared:
            run.say(f"warning: {shared} photos stand in data.train and in data.val: mAP will flatter the model")
    return photos["train" if train_too else "val"], photos["val"]


def load_part(run: Run, part: str) -> Loaded:
    """The photos of data.train or data.val, every one of them looked at, with a bar on a terminal."""
    data = run.config.data
    workers = max(1, len(os.sched_getaffinity(0)) // run.world.local_size)
    with tqdm(desc=f"reading data.{part}", unit="photo", disable=None if run.world.is_main else True, leave=False) as bar:

        def watch(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if run.stop():
                raise Stopped(run.stop.signal)

        sources = getattr(data, part)
        ignore = data.other_classes == "ignore"
        fraction = data.fraction if part == "train" else 1.0
        return read_photos(
            sources, data.root, data.class_names, run.config.seed, ignore, workers, watch, data.format, fraction, data.damaged
        )


def train_samples(run: Run, photos: Photos, preparation: Preparation) -> Samples:
    """The photos as augmented samples."""
    config = run.config
    return Samples(
        photos, preparation.size, preparation.fill, config.seed, Switches(**config.augment.model_dump()),
        config.data.keep_difficult, ImageCache(photos.sizes) if config.data.cache == "ram" else None,
    )  # fmt: skip


def crowded_batch(samples: Samples, count: int) -> Batch:
    """The photos with most objects, which take most memory; some of them more than once where there are fewer."""
    order = np.argsort(-np.diff(samples.photos.starts), kind="stable")
    return samples.__getitems__([(0, int(index)) for index in np.resize(order, count)])


def keep_fault(run: Run, samples: Samples, model: SSD300, preparation: Preparation, iteration: int) -> str:
    """Writes what is needed to run a faulty iteration again; what to tell the user of it."""
    size = run.batch_size
    (keys,) = TrainOrder(len(samples), size, iteration + 1, run.config.seed, first_iteration=iteration)
    paths = [samples.photos.path(index) for _, index in keys]
    last = run.folder / "checkpoints" / "last.pt"
    if run.world.is_main:
        save_fault(run.folder, Fault(iteration, samples.__getitems__(keys), paths, preparation, model.state_dict()))
    return (
        f"the weights were left as before it. Photos of the batch: {', '.join(dict.fromkeys(paths))}. "
        f"Last good checkpoint: {last if last.exists() else 'none yet'}. "
        f"To look into it: python scripts/replay.py {run.folder}. "
        "Try a lower train.lr, a longer train.warmup or train.clip_grad_norm: 10"
    )


def evaluate_photos(run: Run, model: nn.Module, samples: Samples, preparation: Preparation) -> Evaluation:
    """Evaluates a network on the validation photos."""
    config, photos = run.config, samples.photos
    order = EvalOrder(len(photos), config.eval.batch_size, run.world)
    loader = make_loader(samples, order, choose_workers(config.data.workers, run.device, run.world), run.device)
    return evaluate(
        model,
        loader,
        photos.sizes,
        [photos.ground_truth(i) for i in range(len(photos))],
        photos.classes,
        preparation=preparation,
        device=run.device,
        dtype=run.dtype,
        limits=Thresholds(config.eval.score_thresh, config.eval.nms_thresh, config.eval.top_k),
        metric=config.eval.metric,
        world=run.world,
        stop=run.stop,
    )


def evaluate_state(run: Run, samples: Samples, model: SSD300, preparation: Preparation, state: TrainState) -> Evaluation:
    """Evaluates a checkpoint's weights."""
    model.load_state_dict(state.weights)
    try:
        evaluation = evaluate_photos(run, model, samples, preparation)
    except Interrupted:
        raise Stopped(run.stop.signal) from None
    run.say(evaluation.table())
    return evaluation


def describe(run: Run, model: SSD300, schedule: Schedule, train: Photos, val: Photos, iteration: int) -> None:
    """What is about to happen, in a few lines."""
    config = run.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    epochs = schedule.iterations * schedule.batch_size / len(train)
    run.say(f"data: {len(train)} photos with {len(train.labels)} objects to train on, {len(val)} to evaluate on")
    run.say(f"model: SSD300, {parameters:,} parameters, {len(config.data.class_names)} classes and background")
    run.say(
        f"training: iterations {iteration} to {schedule.iterations} of {schedule.batch_size} photos, {epochs:.1f} epochs in all"
    )
    run.say(
        f"device: {run.device}, {str(run.dtype).removeprefix('torch.')}, {run.world.size} process(es); output: {run.folder}"
    )
    unreached = [milestone for milestone in schedule.milestones if milestone >= schedule.iterations]
    if schedule.shape == "milestones" and unreached:
        run.say(f"warning: train.milestones {unreached} lie beyond the last iteration and have no effect")
    if schedule.warmup >= schedule.iterations:
        run.say(f"warning: train.warmup {schedule.warmup} is not over before the last iteration, {schedule.iterations}")


def finish(run: Run, samples: Samples, evaluation: Evaluation) -> None:
    """The picture, where everything lies, and the figure as the last line."""
    if not run.world.is_main:
        return
    picture = run.folder / "detections.png"
    run.folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(picture), cv2.cvtColor(detections_picture(samples, evaluation), cv2.COLOR_RGB2BGR))
    report = run.folder / "report.html"
    write_report(report, report_subject(run, samples, evaluation))
    best, f1 = evaluation.best_score()
    run.say(f"best F1 {f1:.3f}, with scores from {best:.2f} on: what to give scripts/detect.py as --score")
    run.say(f"report: {report}; pictures: {picture}; checkpoints: {run.folder / 'checkpoints'}")
    run.say(evaluation.summary)


def report_subject(run: Run, samples: Samples, evaluation: Evaluation) -> Subject:
    photos = samples.photos
    records = read_records(run.folder)
    trained = [record for record in records if record["kind"] == "train"]
    facts = {"run": str(run.folder), "precision": str(run.dtype).removeprefix("torch."), "processes": str(run.world.size)}
    if trained:
        batch_size = run.batch_size
        steps = np.diff([0, *(record["iteration"] for record in trained)])
        seconds = float(sum(step * batch_size / record["images_per_s"] for step, record in zip(steps, trained, strict=True)))
        facts["time training"] = f"{seconds / 60:.1f} minutes for {trained[-1]['iteration']:,} iterations"
        facts["images a second"] = f"{np.median([record['images_per_s'] for record in trained]):.1f}, median"
    facts["time of the last evaluation"] = f"{evaluation.seconds:.1f} seconds"
    return Subject(
        title=f"SSD300: {run.folder.name}",
        evaluation=evaluation,
        ground_truth=[photos.ground_truth(i) for i in range(len(photos))],
        names=[Path(photos.path(i)).name for i in range(len(photos))],
        image=samples.image,
        records=records,
        config=run.config.model_dump(mode="json"),
        facts=facts,
    )


def samples_picture(samples: Samples, count: int) -> np.ndarray:
    """Training samples as the network gets them, with their boxes."""
    batch = samples.__getitems__([(0, index) for index in range(min(PICTURED, count))])
    cells = []
    for image, boxes, labels in zip(batch.images.numpy(), *(part.numpy() for part in batch.targets[:2]), strict=True):
        real = labels >= 0
        cells.append(draw_boxes(image, boxes[real] * samples.size, labels[real], samples.photos.classes))
    return contact_sheet(cells)


def detections_picture(samples: Samples, evaluation: Evaluation) -> np.ndarray:
    """Photos spread over the validation set, in pairs: ground truth in white, detections in colour."""
    photos = samples.photos
    cells = []
    best, _ = evaluation.best_score()
    for index in np.linspace(0, len(photos) - 1, min(PICTURED, len(photos))).astype(int):
        image, truth, found = samples.image(index), photos.ground_truth(index), evaluation.detections[index]
        sure = found["scores"] >= best
        boxes, labels, scores = found["boxes"][sure], found["labels"][sure], found["scores"][sure]
        cells.append(draw_boxes(image, voc_to_edges(truth["boxes"]), truth["labels"], photos.classes, colour=TRUTH))
        cells.append(draw_boxes(image, voc_to_edges(boxes), labels, photos.classes, scores))
    return contact_sheet(cells)


if __name__ == "__main__":
    sys.exit(main())
