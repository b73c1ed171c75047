"""Evaluation of a run's network on its validation photos."""

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from data.loader import Samples
from ssd.batch import Batch
from ssd.evaluation.evaluate import Evaluation, Thresholds, evaluate
from ssd.evaluation.merge import Parts
from ssd.model import SSD300
from ssd.preparation import Preparation
from ssd.training.build import build_criterion, build_model, use_batch_size_of
from ssd.training.checkpoints import checkpoint_at, checkpoint_to_evaluate
from ssd.training.datasets import load_part, plain_samples, val_batches
from ssd.training.folder import find_same_state
from ssd.training.outcome import finish
from ssd.training.run import Run, require_same_config
from ssd.training.trainer import Best
from ssd.weights.checkpoint import TrainState, load_checkpoint


def evaluate_photos(
    run: Run, samples: Samples, preparation: Preparation, model: nn.Module, batches: Iterable[Batch] | None = None
) -> Evaluation:
    """Evaluates a network on the validation photos.

    Args:
        run: the run.
        samples: the photos.
        preparation: what the weights expect of images.
        model: the network.
        batches: this process's share of the photos, where its workers have begun with them.

    Raises:
        Stopped: the run is asked to stop.
    """
    config, photos, windows = run.config, samples.photos, samples.windows
    return evaluate(
        model,
        batches or val_batches(run, samples),
        photos.sizes,
        [photos.ground_truth(i) for i in range(len(photos))],
        photos.classes,
        criterion=build_criterion(config),
        preparation=preparation,
        device=run.device,
        dtype=run.dtype,
        limits=Thresholds(config.eval.score_thresh, config.eval.nms_thresh, config.eval.top_k),
        metric=config.eval.metric,
        world=run.world,
        stop=run.stop,
        parts=Parts(windows.photos, windows.edges, windows.trained),
    )


def evaluate_checkpoint(run: Run, path: Path, samples: Samples, preparation: Preparation, model: SSD300) -> Best:
    """Evaluates the weights of a checkpoint of this run's network, which the main process has written, maybe to a disk that the
    others do not see, and hands out."""
    iteration = 0
    if run.world.is_main:
        state = load_checkpoint(path)
        model.load_state_dict(state.weights)
        iteration = state.iteration
    iteration = run.world.gather(iteration)[0]
    run.world.equalise(model.state_dict().values())
    return _evaluate(run, path, iteration, samples, preparation, model)


def eval_only(run: Run, resume: str | None) -> None:
    """Evaluates a checkpoint on the validation photos."""

    def find() -> tuple[Path, TrainState, list[str]]:
        return checkpoint_at(checkpoint_to_evaluate(run.folder) if resume in (None, "auto") else resume)

    require_same_config(run)
    path, state, skipped = find_same_state(run.world, find, lambda found: found[1])
    for line in skipped:
        run.say(f"skipped: {line}")
    model, preparation = build_model(run, state)
    use_batch_size_of(run, state)
    samples = plain_samples(run, load_part(run, "val"), preparation)
    finish(run, samples, path, _evaluate(run, path, state.iteration, samples, preparation, model))


def _evaluate(run: Run, path: Path, iteration: int, samples: Samples, preparation: Preparation, model: SSD300) -> Best:
    run.say(f"evaluating {path}, iteration {iteration}")
    evaluation = evaluate_photos(run, samples, preparation, model)
    run.say(f"{evaluation.table()}\n{evaluation.summary}")
    return Best(iteration, evaluation)
