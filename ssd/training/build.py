"""The parts of a run that its configuration describes: data, network, batch size, schedule and step, built in this order."""

import copy
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.dataset.photos import Annotations
from data.loading.loader import DetectionDataset
from ssd.compress.features import NUM_CONVS, prunable_features, start_from_features
from ssd.compress.prune import PHOTOS as PRUNE_PHOTOS
from ssd.config.schema import DEFAULT_BATCH_SIZE, Config, ConfigError, ModelConfig
from ssd.config.yaml import dump_yaml
from ssd.dbox import spec_of
from ssd.evaluation.pictures import evenly_spaced
from ssd.loss import MultiBoxLoss
from ssd.model import SSD300
from ssd.preprocessing import IMAGENET, Preprocessing
from ssd.system.device import choose_training_format
from ssd.system.distributed import World
from ssd.system.memory import fewest_steps
from ssd.training.checkpoints import BEST, ResumePoint, best_until
from ssd.training.datasets import (
    Data,
    cache_copies,
    eval_dataset,
    fullest_batch,
    load_data,
    load_part,
    tiles_notes,
    train_dataset,
)
from ssd.training.optimizer import ModelEMA, default_milestones, make_optimizer
from ssd.training.run import Run
from ssd.training.schedule import Schedule
from ssd.training.step import TrainStep, Updater
from ssd.weights.checkpoint import CheckpointError, TrainState, load_checkpoint, shape_of
from ssd.weights.pretrained import build_network, init_from, load_pretrained


@dataclass(frozen=True)
class RunParts:
    """All that training takes."""

    samples: DetectionDataset  # augmented
    val_samples: DetectionDataset
    model: SSD300
    preprocessing: Preprocessing
    schedule: Schedule
    step: TrainStep
    damaged: list[str]  # why photos were left out, a line for each fault


def build_parts(run: Run, state: TrainState | None) -> RunParts:
    """The parts of a run, at its start or as a state has them; `train.batch_size: auto` is settled on the way.

    Raises:
        DataError: something in the data cannot be used.
        CheckpointError: the state is of another network.
        ConfigError: the memory does not hold a step.
    """
    data = load_data(run)
    return assemble(run, data, *build_model(run, state, data.train), state)


def assemble(run: Run, data: Data, model: SSD300, preprocessing: Preprocessing, state: TrainState | None) -> RunParts:
    """`build_parts` of photos and a network that are there.

    Raises:
        As `build_parts`.
    """
    photos, val_photos, damaged = data
    samples, val_samples = train_dataset(run, photos, preprocessing), eval_dataset(run, val_photos, preprocessing)
    settle_batch_size(run, model, preprocessing, samples, state)
    schedule = build_schedule(run, len(samples))
    step = build_step(run, model, preprocessing, schedule)
    for note in step.updater.restore(state) if state else ():
        run.say(note)
    return RunParts(samples, val_samples, model, preprocessing, schedule, step, damaged)


def first_state(run: Run, preprocessing: Preprocessing, found: ResumePoint) -> TrainState:
    """Where the training loop begins: at the start, or as a state has it; with the configuration of now.

    A best figure counts only beside others of its kind, and as long as its checkpoint is there. What begins in a folder
    without the run that its state is of, is another run.

    Args:
        run: the run.
        preprocessing: what its weights expect of images.
        found: the state that it resumes, if any, and what is going to be removed from its folder.
    """
    state = found.state
    config = run.config.model_dump(mode="json")
    if state is None:
        names = list(run.config.data.class_names)
        return TrainState(
            {}, names, preprocessing.to_plain(), config, run_id=secrets.token_hex(8), num_processes=run.world.size
        )
    run_id = (not found.clear and state.run_id) or secrets.token_hex(8)
    first = replace(state, config=config, num_processes=run.world.size, run_id=run_id)
    changed = [name for name in ("eval.metric", "data.val", "data.tiles") if _differs(state.config, config, name)]
    divided = any(source.val_fraction for source in run.config.data.val)
    if divided and state.config.get("seed", run.config.seed) != run.config.seed:
        changed.append("seed")
        run.say("warning: another seed divides the folder anew: some of the photos of data.val have been trained on")
    has_best = run.world.all_gather(_has_best(run.folder, found))[0]  # the others may not see the main one's disk
    if state.best_map < 0 or (has_best and not changed):
        return first
    reason = f"{' and '.join(changed)} changed" if changed else f"{run.folder} has no best.pt of this run up to here"
    kept = f"; {BEST} stays as {best_until(state.iteration)}" if has_best and not found.goes_back else ""
    run.say(f"{reason}: the best checkpoint is chosen again, from this iteration{kept}")
    return replace(first, best_map=-1.0, best_loss=math.inf, not_improved=0)


def _has_best(folder: Path, found: ResumePoint) -> bool:
    """Whether the folder's best checkpoint is whole, and of the run up to where it begins."""
    best = folder / "checkpoints" / BEST
    if found.state is None or found.clear or not best.exists():
        return False
    try:
        iteration = load_checkpoint(best).iteration
    except CheckpointError:
        return False
    return iteration <= found.state.iteration or not found.goes_back


def _differs(theirs: dict[str, Any], ours: dict[str, Any], name: str) -> bool:
    """Whether an entry of a checkpoint's configuration is another now; not where it has none, as that of converted weights."""
    section, key = name.split(".")
    return key in theirs.get(section, {}) and theirs[section][key] != ours[section][key]


def build_model(run: Run, state: TrainState | None, photos: Annotations | None = None) -> tuple[SSD300, Preprocessing]:
    """The network on its device, and what its weights expect of images.

    Args:
        run: the run.
        state: that it resumes, if any.
        photos: to train on, for pretrained features that have to be pruned; read where they are needed and not given.

    Raises:
        CheckpointError: the weights cannot be used.
        DataError: the photos cannot be read.
    """
    config = run.config
    classes = list(config.data.class_names)
    torch.manual_seed(config.seed)
    model = build_network(len(classes) + 1, config.model)
    if state is None:
        if config.model.init_from:
            preprocessing, notes = init_from(model, Path(config.model.init_from), classes)
        elif (features := prunable_features(config.model)) is not None:
            preprocessing, notes = _pruned_start(run, model, features, photos or load_part(run, "train")), []
        else:
            preprocessing, notes = load_pretrained(model, config.model.pretrained, classes)
        for note in notes:
            run.say(note)
    else:
        if state.classes != classes:
            raise CheckpointError(
                f"the checkpoint's classes are {state.classes}, data.classes are {classes}; to start from its weights with "
                "other classes, name it in model.init_from"
            )
        preprocessing = Preprocessing(**state.preprocessing)
        theirs, ours = (
            ModelConfig.model_validate(shape_of(each)) for each in (state.config["model"], config.model.model_dump(mode="json"))
        )
        try:
            model.load_state_dict(state.weights)
            fits = spec_of(theirs.dboxes) == spec_of(ours.dboxes)  # which no weight tells
        except RuntimeError:
            fits = False
        if not fits:
            differing = [
                f"model.{key}: {dump_yaml(value, in_line=True)}"
                for key, value in theirs.model_dump(mode="json").items()
                if value != ours.model_dump(mode="json")[key]
            ]
            raise CheckpointError(
                f"the checkpoint is of another model: set {', '.join(differing)}, or start from it by model.init_from"
                if differing
                else "the checkpoint's weights do not fit its own configuration"
            )
    place(run, model, config.model.freeze)
    return model, preprocessing


def _pruned_start(run: Run, model: SSD300, features: dict[str, Tensor], photos: Annotations) -> Preprocessing:
    """Prunes pretrained features by some of the training photos, in the main process; the others receive its weights."""
    source = run.config.model.pretrained
    outcome: tuple[dict[str, Tensor], Preprocessing] | str | None = None  # or an error, which all processes raise
    if run.world.is_main:
        run.say(f"model.pretrained: pruning VGG16's features in {source} to this network, by up to {PRUNE_PHOTOS} photos")
        chosen = [(0, index) for index in evenly_spaced(len(photos), PRUNE_PHOTOS)]
        pixels = eval_dataset(run, photos, IMAGENET).__getitems__(chosen).images
        with tqdm(total=NUM_CONVS, desc="pruning", unit="layer", disable=None, leave=False) as bar:
            try:
                outcome = {}, start_from_features(model, features, pixels, source, lambda _: bar.update())
            except CheckpointError as error:
                outcome = str(error)
    if run.world.size > 1 and isinstance(outcome, tuple):
        outcome = model.state_dict(), outcome[1]
    outcome = run.world.all_gather(outcome, patient=True)[0]
    if not isinstance(outcome, tuple):
        raise CheckpointError(str(outcome))
    weights, preprocessing = outcome
    if weights:
        model.load_state_dict(weights)
    return preprocessing


def place(run: Run, model: SSD300, freeze: str | None) -> None:
    """Puts a network on its device, in the memory format of training there, with its layers up to `freeze` frozen."""
    if freeze:
        model.freeze(freeze)
    memory_format = choose_training_format(run.device, run.dtype, model.width)
    model.to(run.device).to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]


def build_schedule(run: Run, num_samples: int) -> Schedule:
    config, train = run.config, run.config.train
    iterations = train.iterations or -(-(train.epochs or 0) * num_samples // run.batch_size)
    return Schedule(
        iterations=iterations,
        num_samples=num_samples,
        batch_size=run.batch_size,
        accumulate=train.accumulate,
        lr=train.lr,
        warmup=train.warmup,
        shape=train.schedule,
        milestones=default_milestones(iterations) if train.milestones is None else train.milestones,
        log_every=config.log_every,
        eval_every=config.eval.every,
        checkpoint_every=config.checkpoint.every,
        keep=config.checkpoint.keep,
        patience=config.eval.patience,
    )


def build_step(run: Run, model: SSD300, preprocessing: Preprocessing, schedule: Schedule) -> TrainStep:
    config, train = run.config, run.config.train
    synchronise_norms(run, model)
    optimizer = make_optimizer(model, train.optimizer, train.lr, train.momentum, train.weight_decay, train.backbone_lr)
    average = ModelEMA(model, train.ema) if train.ema else None
    updater = Updater(model, optimizer, schedule, run.dtype, average, train.clip_grad_norm)
    return TrainStep(model, build_criterion(config), preprocessing, updater, run.dtype, run.world, train.compile)


def synchronise_norms(run: Run, model: SSD300) -> None:
    """Where several processes share a batch, batch normalisation uses the whole of it, if the device can."""
    if run.world.size > 1 and learns_statistics(model):
        if run.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # replaces the norms within the model
        else:
            run.say("warning: on CPUs batch normalisation uses each process's share of the batch, not the whole batch")


def learns_statistics(model: nn.Module) -> bool:
    """Whether it has batch normalisation that is not frozen."""
    norms = (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    return any(parameter.requires_grad for norm in norms for parameter in norm.parameters())


def build_criterion(config: Config) -> MultiBoxLoss:
    """The loss, of training and evaluation alike."""
    return MultiBoxLoss(config.loss.jaccard_thresh, config.loss.neg_pos, min_neg=config.loss.min_neg)


def settle_batch_size(
    run: Run,
    model: SSD300,
    preprocessing: Preprocessing,
    samples: DetectionDataset,
    state: TrainState | None,
) -> None:
    """Puts numbers in the place of `train.batch_size: auto`: those that the run began with, or what the memory holds.

    Args:
        run: whose configuration is settled.
        model: the network.
        preprocessing: what its weights expect of images.
        samples: to train on; those that take most memory are tried.
        state: that the run resumes, if any.

    Raises:
        ConfigError: it does not even hold single photos.
    """
    if run.config.train.batch_size != "auto":
        return
    size = DEFAULT_BATCH_SIZE
    if state is not None:
        use_batch_size_of(run, state)
        size = run.batch_size
        if state.num_processes in (0, run.world.size) and size % (run.config.train.accumulate * run.world.size) == 0:
            return
    size = max(size // run.world.size, 1) * run.world.size

    def step(count: int) -> None:
        """A step on a copy of the network, which is thrown away."""
        alone = replace(run, world=World())
        alone.set_train(batch_size=count, accumulate=1, compile=False)
        batch = fullest_batch(samples, count)
        build_step(alone, copy.deepcopy(model), preprocessing, build_schedule(alone, len(samples)))([batch], 0)

    reserved = samples.cache.bytes * cache_copies(run) if samples.cache else 0
    found = fewest_steps(step, size // run.world.size, run.device, run.world.local_size, reserved)
    every = run.world.all_gather(found)
    if None in every:
        raise ConfigError(f"train.batch_size: auto: a step on a single photo takes more than {run.device} has free")
    steps = max(count for count in every if count)
    run.set_train(batch_size=size, accumulate=steps)
    run.say(f"train.batch_size: auto: {size} photos in {steps} step(s) of {size // steps}")
    if steps > 1 and learns_statistics(model):
        run.say(
            "warning: batch normalisation takes its statistics from each accumulation step, not from the whole batch; "
            "with model.batch_norm: none nothing but memory and time would change"
        )
    limit_evaluation(run)


def use_batch_size_of(run: Run, state: TrainState) -> None:
    """Takes the batches that a run began with, where the configuration leaves them open."""
    if run.config.train.batch_size == "auto":
        # Weights converted from another project's tell of none.
        began = state.config.get("train", {"batch_size": DEFAULT_BATCH_SIZE, "accumulate": 1})
        run.set_train(batch_size=began["batch_size"], accumulate=began["accumulate"])
        limit_evaluation(run)


def limit_evaluation(run: Run) -> None:
    """Lets no more photos at once through the network in an evaluation than in a training step, which takes more memory."""
    most = max(run.batch_size // (run.config.train.accumulate * run.world.size), 1)
    if run.config.eval.batch_size > most:
        run.say(
            f"train.batch_size: auto: eval.batch_size {most} instead of {run.config.eval.batch_size}, as in a training step"
        )
        run.config = run.config.model_copy(update={"eval": run.config.eval.model_copy(update={"batch_size": most})})


def describe(run: Run, parts: RunParts, iteration: int) -> None:
    """What is about to happen, in a few lines."""
    config, schedule = run.config, parts.schedule
    photos, val_photos = parts.samples.photos, parts.val_samples.photos
    what = "photos and tiles" if config.data.tiles else "photos"
    parameters = sum(parameter.numel() for parameter in parts.model.parameters())
    epochs = schedule.iterations * schedule.batch_size / len(parts.samples)
    run.say(f"data: {len(photos)} photos with {len(photos.labels)} objects to train on, {len(val_photos)} to evaluate on")
    for note in tiles_notes(config, parts.samples, parts.val_samples):
        run.say(note)
    run.say(f"model: SSD300, {parameters:,} parameters, {len(config.data.class_names)} classes and background")
    run.say(
        f"training: iterations {iteration} to {schedule.iterations} of {schedule.batch_size} {what}, {epochs:.1f} epochs in all"
    )
    run.say(
        f"device: {run.device}, {str(run.dtype).removeprefix('torch.')}, {run.world.size} process(es); output: {run.folder}"
    )
    for warning in schedule_warnings(schedule, config.train.milestones):
        run.say(f"warning: {warning}")


def schedule_warnings(schedule: Schedule, milestones: Sequence[int] | None) -> list[str]:
    """What of a schedule changes nothing; `milestones` are those that the configuration names, if it does."""
    warnings = []
    unreached = [milestone for milestone in schedule.milestones if milestone >= schedule.iterations]
    if schedule.shape == "cosine" and milestones:
        warnings.append("train.milestones have no effect with train.schedule: cosine")
    elif schedule.shape == "milestones" and unreached:
        warnings.append(f"train.milestones {unreached} lie beyond the last iteration and have no effect")
    if schedule.warmup >= schedule.iterations:
        warnings.append(f"train.warmup {schedule.warmup} is not over before the last iteration, {schedule.iterations}")
    return warnings
