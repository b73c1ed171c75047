"""A run: what its parts need to know, and the parts that a configuration describes."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import nn

from ssd.batch import Batch
from ssd.config import DEFAULT_BATCH_SIZE, Config, ConfigError
from ssd.loss import MultiBoxLoss
from ssd.model import SSD300
from ssd.preparation import Preparation
from ssd.system.distributed import World
from ssd.system.memory import fewest_steps
from ssd.system.stop import StopRequest
from ssd.training.optimizer import WeightAverage, default_milestones, make_optimizer
from ssd.training.trainer import Schedule, Trainer
from ssd.weights.checkpoint import CheckpointError, TrainState
from ssd.weights.pretrained import build_network, init_from, load_backbone


@dataclass
class Run:
    """What every part of a run needs to know."""

    config: Config
    world: World
    device: torch.device
    dtype: torch.dtype
    folder: Path
    stop: StopRequest

    @classmethod
    def alone(cls, config: Config) -> Self:
        """A run of one process on the CPU, for those who look at a run's parts and do not train."""
        return cls(config, World(), torch.device("cpu"), torch.float32, Path(config.output_dir), StopRequest())

    @property
    def batch_size(self) -> int:
        """Photos a step, once `settle_batch_size` has put a number in the place of auto."""
        assert self.config.train.batch_size != "auto"
        return self.config.train.batch_size

    def say(self, text: str) -> None:
        if self.world.is_main:
            print(text, flush=True)


def build_model(run: Run, state: TrainState | None) -> tuple[SSD300, Preparation]:
    """The network on its device, and what its weights expect of images."""
    config = run.config
    classes = list(config.data.class_names)
    torch.manual_seed(config.seed)
    model = build_network(len(classes) + 1, config.model)
    if state is None and config.model.init_from:
        preparation, notes = init_from(model, Path(config.model.init_from), classes)
        for note in notes:
            run.say(note)
    elif state is None:
        preparation = load_backbone(model, config.model.pretrained, config.model.batch_norm)
    else:
        if state.classes != classes:
            raise CheckpointError(f"the checkpoint's classes are {state.classes}, data.classes are {classes}")
        preparation = Preparation(**state.preparation)
        theirs = state.config["model"]["dboxes"]
        if theirs != config.model.dboxes:
            raise CheckpointError(f"the checkpoint's model.dboxes are {theirs}, the configuration's {config.model.dboxes}")
        try:
            model.load_state_dict(state.weights)
        except RuntimeError:
            theirs, ours = state.config["model"], config.model.model_dump()
            raise CheckpointError(f"the checkpoint is of another model: {theirs}, not {ours}") from None
    model.to(run.device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model, preparation


def build_schedule(run: Run, num_photos: int) -> Schedule:
    config, train = run.config, run.config.train
    iterations = train.iterations or -(-(train.epochs or 0) * num_photos // run.batch_size)
    return Schedule(
        iterations=iterations,
        num_photos=num_photos,
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


def build_trainer(run: Run, model: SSD300, preparation: Preparation, schedule: Schedule) -> Trainer:
    config, train = run.config, run.config.train
    if run.world.size > 1 and config.model.batch_norm:
        if run.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # replaces the norms within the model
        else:
            run.say("warning: on CPUs batch normalisation uses each process's share of the batch, not the whole batch")
    return Trainer(
        model,
        MultiBoxLoss(config.loss.jaccard_thresh, config.loss.neg_pos),
        make_optimizer(model, train.optimizer, train.lr, train.momentum, train.weight_decay),
        preparation,
        schedule,
        run.folder / "checkpoints",
        device=run.device,
        dtype=run.dtype,
        world=run.world,
        average=WeightAverage(model, train.ema) if train.ema else None,
        clip_grad_norm=train.clip_grad_norm,
        compiled=train.compile,
        identity={"classes": list(config.data.class_names), "config": config.model_dump(mode="json")},
    )


def settle_batch_size(
    run: Run,
    model: SSD300,
    preparation: Preparation,
    num_photos: int,
    largest: Callable[[int], Batch],
    state: TrainState | None,
) -> None:
    """Puts numbers in the place of `train.batch_size: auto`: those that the run began with, or what the memory holds.

    Args:
        run: whose configuration is settled.
        model: the network.
        preparation: what its weights expect of images.
        num_photos: to train on.
        largest: gives a batch of so many photos, those of the data set that take most memory.
        state: that the run goes on from, if any.

    Raises:
        ConfigError: it does not even hold single photos.
    """
    if state is not None:
        use_batch_size_of(run, state)
    if run.config.train.batch_size != "auto":
        return
    size = max(DEFAULT_BATCH_SIZE // run.world.size, 1) * run.world.size

    def step(count: int) -> None:
        """A step on a copy of the network, which is thrown away."""
        alone = replace(run, world=World(), config=with_train(run.config, batch_size=count, accumulate=1, compile=False))
        trainer = build_trainer(alone, copy.deepcopy(model), preparation, build_schedule(alone, num_photos))
        trainer.train_step([largest(count)])

    found = fewest_steps(step, size // run.world.size, run.device, run.world.local_size)
    every = run.world.gather(found)
    if None in every:
        raise ConfigError(f"train.batch_size: auto: a step on a single photo takes more than {run.device} has free")
    steps = max(count for count in every if count)
    run.config = with_train(run.config, batch_size=size, accumulate=steps)
    run.say(f"train.batch_size: auto: {size} photos in {steps} step(s) of {size // steps}")


def use_batch_size_of(run: Run, state: TrainState) -> None:
    """Goes on with the batches that a run began with, where the configuration leaves them open."""
    if run.config.train.batch_size == "auto":
        # Weights converted from another project's tell of none.
        began = state.config.get("train", {"batch_size": DEFAULT_BATCH_SIZE, "accumulate": 1})
        run.config = with_train(run.config, batch_size=began["batch_size"], accumulate=began["accumulate"])


def with_train(config: Config, **entries: object) -> Config:
    """A configuration with other entries in its section `train`."""
    return config.model_copy(update={"train": config.train.model_copy(update=entries)})
