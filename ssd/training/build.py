"""What a run is built of, from its configuration: the network, the batch size and the training step."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.dataset.annotations import Annotations
from data.loading.dataset import DetectionDataset
from ssd.compress.distill import Teacher, load_teacher
from ssd.compress.features import NUM_CONVS, start_from_features
from ssd.compress.prune import PHOTOS as PRUNE_PHOTOS
from ssd.config.schema import DEFAULT_BATCH_SIZE, Config, ConfigError, ModelConfig
from ssd.config.yaml import dump_yaml
from ssd.dbox import spec_of
from ssd.loss import MultiBoxLoss
from ssd.model import SSD
from ssd.preprocessing import Preprocessing
from ssd.system.device import choose_training_format
from ssd.system.distributed import World
from ssd.system.memory import fewest_steps
from ssd.training.datasets import Data, cache_copies, eval_dataset, fullest_batch, load_part, sample_pixels, train_dataset
from ssd.training.optimizer import ModelEMA, make_optimizer
from ssd.training.run import Run
from ssd.training.schedule import Schedule
from ssd.training.step import TrainStep, Updater
from ssd.weights.checkpoint import CheckpointError, TrainState, shape_of
from ssd.weights.pretrained import build_network, init_from, load_pretrained


def build_model(run: Run, state: TrainState | None, photos: Annotations | None = None) -> tuple[SSD, Preprocessing]:
    """Build the network on its device, and return the preprocessing for its weights.

    Args:
        run: the run.
        state: to load the weights from, if the run resumes one.
        photos: training photos, for pretrained features that have to be pruned; loaded if needed and not given.

    Raises:
        CheckpointError: the weights cannot be used.
        DataError: the photos cannot be read.
    """
    torch.manual_seed(run.config.seed)
    model = build_network(len(run.config.data.class_names) + 1, run.config.model)
    preprocessing = _initial_weights(run, model, photos) if state is None else _weights_of(run, model, state)
    place(run, model, run.config.model.freeze)
    return model, preprocessing


def _initial_weights(run: Run, model: SSD, photos: Annotations | None) -> Preprocessing:
    """Load the weights that `model.init_from` or `model.pretrained` names."""
    options, classes = run.config.model, run.config.data.class_names
    if options.init_from:
        preprocessing, notes = init_from(model, Path(options.init_from), classes)
    else:
        prune = partial(_prune_features, run, model, photos)
        preprocessing, notes = load_pretrained(model, options.pretrained, classes, prune)
    for note in notes:
        run.say(note)
    return preprocessing


def _prune_features(run: Run, model: SSD, photos: Annotations | None, features: dict[str, Tensor]) -> Preprocessing:
    """Prune pretrained features on some training photos, in the main process, and send the others its weights."""
    source, photos = run.config.model.pretrained, photos or load_part(run, "train")
    outcome: tuple[dict[str, Tensor], Preprocessing] | str | None = None  # or an error, which all processes raise
    if run.world.is_main:
        run.say(f"model.pretrained: pruning VGG16's features in {source} to this network, on up to {PRUNE_PHOTOS} photos")
        pixels = sample_pixels(run, photos, PRUNE_PHOTOS)
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


def _weights_of(run: Run, model: SSD, state: TrainState) -> Preprocessing:
    """Load the weights of a checkpoint that has the same classes and the same architecture.

    Raises:
        CheckpointError: it has others.
    """
    classes = list(run.config.data.class_names)
    if state.classes != classes:
        raise CheckpointError(
            f"the checkpoint has the classes {state.classes}, data.classes has {classes}; to start from its weights with "
            "other classes, name it in model.init_from"
        )
    theirs, ours = (
        ModelConfig.model_validate(shape_of(options))
        for options in (state.config["model"], run.config.model.model_dump(mode="json"))
    )
    try:
        model.load_state_dict(state.weights)
        # The weights do not depend on the DBoxes' sizes.
        fits = spec_of(theirs.dboxes, theirs.row) == spec_of(ours.dboxes, ours.row)
    except RuntimeError:
        fits = False
    if not fits:
        current = ours.model_dump(mode="json")
        differing = [
            f"model.{key}: {dump_yaml(value, in_line=True)}"
            for key, value in theirs.model_dump(mode="json").items()
            if value != current[key]
        ]
        raise CheckpointError(
            f"the checkpoint has another model: set {', '.join(differing)}, or start from its weights with model.init_from"
            if differing
            else "the checkpoint's weights do not fit its own configuration"
        )
    return Preprocessing.from_plain(state.preprocessing)


def place(run: Run, model: SSD, freeze: str | None) -> None:
    """Move a network to its device and memory format, and freeze its layers up to `freeze`."""
    if freeze:
        model.freeze(freeze)
    memory_format = choose_training_format(run.device, run.dtype, model.width, model.architecture.separable)
    model.to(run.device).to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]


def build_teacher(run: Run) -> Teacher | None:
    """Load the network that `train.teacher` names.

    Raises:
        CheckpointError: it cannot be used.
    """
    config, source = run.config, run.config.train.teacher
    if source is None:
        return None
    if Path(source).resolve().parent == (run.folder / "checkpoints").resolve():
        raise CheckpointError(f"train.teacher: {source}: this run replaces its own checkpoints; name a copy in another folder")
    return load_teacher(source, config.model, config.data.class_names, run.device, run.dtype)


class RunParts(NamedTuple):
    """What a run trains with."""

    train_set: DetectionDataset  # augmented
    val_set: DetectionDataset
    schedule: Schedule
    step: TrainStep


def build_parts(
    run: Run,
    data: Data,
    model: SSD,
    preprocessing: Preprocessing,
    state: TrainState | None = None,
    teacher: Teacher | None = None,
) -> RunParts:
    """Build datasets, schedule and training step, and restore a state; settles `train.batch_size: auto`.

    Raises:
        ConfigError: not even a single photo fits into memory.
    """
    train_set, val_set = train_dataset(run, data.train, preprocessing), eval_dataset(run, data.val, preprocessing)
    settle_batch_size(run, model, preprocessing, train_set, state, teacher)
    schedule = Schedule(run.config.train, run.config.eval.every, len(train_set))
    step = build_step(run, model, preprocessing, schedule, teacher)
    for note in step.updater.restore(state) if state else ():
        run.say(note)
    return RunParts(train_set, val_set, schedule, step)


def build_step(
    run: Run, model: SSD, preprocessing: Preprocessing, schedule: Schedule, teacher: Teacher | None = None
) -> TrainStep:
    train = run.config.train
    synchronise_norms(run, model)
    optimizer = make_optimizer(model, train.optimizer, train.lr, train.momentum, train.weight_decay, train.backbone_lr)
    ema = ModelEMA(model, train.ema) if train.ema else None
    updater = Updater(model, optimizer, schedule, run.dtype, ema, train.clip_grad_norm)
    criterion = build_criterion(run.config, run.device)
    return TrainStep(model, criterion, preprocessing, updater, run.dtype, run.world, train.compile, teacher)


def build_criterion(config: Config, device: torch.device) -> MultiBoxLoss:
    """Return the loss of training and evaluation."""
    loss, classes = config.loss, config.data.class_names
    weights = [1.0, *(loss.class_weights.get(name, 1.0) for name in classes)]
    tensor = torch.tensor(weights, device=device) if loss.class_weights else None
    return MultiBoxLoss(loss.jaccard_thresh, loss.neg_pos, min_neg=loss.min_neg, class_weights=tensor)


def synchronise_norms(run: Run, model: SSD) -> None:
    """Compute batch normalisation over the batch of all processes, if the device can."""
    if run.world.size > 1 and learns_statistics(model):
        if run.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # replaces the norms within the model
        else:
            run.say("warning: on CPUs batch normalisation uses each process's share of the batch, not the whole batch")


def learns_statistics(model: nn.Module) -> bool:
    """Return whether the network has batch normalisation that is not frozen."""
    norms = (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    return any(parameter.requires_grad for norm in norms for parameter in norm.parameters())


def settle_batch_size(
    run: Run,
    model: SSD,
    preprocessing: Preprocessing,
    samples: DetectionDataset,
    state: TrainState | None,
    teacher: Teacher | None = None,
) -> None:
    """Replace `train.batch_size: auto` by the resumed run's numbers, or by what fits into memory.

    Args:
        run: its configuration is changed.
        model: the network.
        preprocessing: of its input.
        samples: to train on; the ones that need most memory are tried.
        state: the run resumes, if any.
        teacher: the network's teacher, if it has one.

    Raises:
        ConfigError: not even a single photo fits.
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
    reserved = samples.cache.bytes * cache_copies(run) if samples.cache else 0
    trial = _trial_step(run, model, preprocessing, samples, teacher)
    found = fewest_steps(trial, size // run.world.size, run.device, run.world.local_size, reserved)
    every = run.world.all_gather(found)
    if None in every:
        raise ConfigError(f"train.batch_size: auto: a step on a single photo needs more than the free memory of {run.device}")
    steps = max(count for count in every if count)
    run.set_train(batch_size=size, accumulate=steps)
    run.say(f"train.batch_size: auto: {size} photos in {steps} step(s) of {size // steps}")
    if steps > 1 and learns_statistics(model):
        run.say(
            "warning: batch normalisation takes its statistics from each accumulation step, not from the whole batch; "
            "model.batch_norm: none avoids this"
        )
    limit_evaluation(run)


def _trial_step(
    run: Run, model: SSD, preprocessing: Preprocessing, samples: DetectionDataset, teacher: Teacher | None
) -> Callable[[int], object]:
    """Return a function that takes a step with a number of photos, on a copy of the network that is thrown away."""

    def step(count: int) -> None:
        alone = replace(run, world=World())
        alone.set_train(batch_size=count, accumulate=1, compile=False)
        batch = fullest_batch(samples, count)
        schedule = Schedule(alone.config.train, run.config.eval.every, len(samples))
        build_step(alone, copy.deepcopy(model), preprocessing, schedule, teacher)([batch], 0)

    return step


def use_batch_size_of(run: Run, state: TrainState) -> None:
    """Replace `train.batch_size: auto` by the batch size and accumulation that a run began with."""
    if run.config.train.batch_size == "auto":
        # Weights converted from other projects have no configuration.
        began = state.config.get("train", {"batch_size": DEFAULT_BATCH_SIZE, "accumulate": 1})
        run.set_train(batch_size=began["batch_size"], accumulate=began["accumulate"])
        limit_evaluation(run)


def limit_evaluation(run: Run) -> None:
    """Limit eval.batch_size to the photos of one training step, which is known to fit into memory."""
    most = max(run.batch_size // (run.config.train.accumulate * run.world.size), 1)
    if run.config.eval.batch_size > most:
        run.say(
            f"train.batch_size: auto: eval.batch_size {most} instead of {run.config.eval.batch_size}, as in a training step"
        )
        run.config = run.config.model_copy(update={"eval": run.config.eval.model_copy(update={"batch_size": most})})
