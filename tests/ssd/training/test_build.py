from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from data.loading.dataset import DetectionDataset
from ssd.config import ConfigError
from ssd.model import SSD300
from ssd.preprocessing import IMAGENET, OXFORD, Preprocessing
from ssd.system.distributed import World
from ssd.training import build
from ssd.training.build import build_criterion, build_model, build_step, synchronise_norms, use_batch_size_of
from ssd.weights.checkpoint import CheckpointError, TrainState, save_checkpoint
from tests.helpers.runs import run_of, schedule_of


@pytest.mark.parametrize(
    "network, said",
    [({}, False), ({"batch_norm": "backbone"}, True), ({"conv4_3_norm": "batch"}, True), ({"conv4_3_norm": "none"}, False)],
    ids=str,
)
def test_processes_on_cpus_are_warned_about_separate_statistics(network, said, capsys):
    run = run_of(model={"pretrained": "none", "width": 0.05, **network})
    run.world = World(size=2)
    synchronise_norms(run, SSD300(2, width=0.05, **network))
    assert ("each process's share of the batch" in capsys.readouterr().out) is said


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("batch_norm", ["none", "backbone"])
def test_automatic_accumulation_warns_about_what_it_changes(steps, batch_norm, monkeypatch, capsys):
    monkeypatch.setattr(build, "fewest_steps", lambda *_: steps)
    run = run_of(train={"batch_size": "auto"})
    samples = cast("DetectionDataset", SimpleNamespace(cache=None))
    build.settle_batch_size(run, SSD300(2, batch_norm, 0.05), IMAGENET, samples, None)
    said = capsys.readouterr().out
    warned = "warning: batch normalisation takes its statistics from each accumulation step" in said
    assert warned is (steps > 1 and batch_norm != "none")
    # No more photos at once than the step that was tried.
    assert run.config.eval.batch_size == min(16, 32 // steps)
    assert ("eval.batch_size 8 instead of 16" in said) is (steps > 1)


@pytest.mark.parametrize(
    "network, said",
    [
        ({"batch_norm": "all"}, "set model.batch_norm: backbone, or start"),
        ({"conv4_3_norm": "none", "width": 0.1}, "set model.width: 0.05, model.conv4_3_norm: l2, or start"),
        ({"dboxes": "coco"}, "set model.dboxes: voc, or start"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_model_is_refused_with_its_differences(network, said):
    shape = {"pretrained": "none", "batch_norm": True, "width": 0.05, "dboxes": "voc"}
    weights = SSD300(3, "backbone", 0.05).state_dict()
    state = TrainState(weights, ["cat", "dog"], IMAGENET.to_plain(), {"model": {**shape, "pretrained": "slim"}})
    run = run_of(model={**shape, **network})
    with pytest.raises(CheckpointError, match=said):
        build_model(run, state)
    same = {"sizes": [30, 60, 111, 162, 213, 264, 315], "ratios": [[2], [2, 3], [2, 3], [2, 3], [2], [2]]}
    build_model(run_of(model={**shape, "dboxes": same}), state)


def test_custom_dboxes_must_match_on_resume():
    sizes, ratios = [10, 20, 40, 80, 160, 240, 300], [[4], [2, 5], [2, 3], [2, 3], [2], [1.5]]
    shape = {"pretrained": "none", "width": 0.05, "dboxes": {"sizes": sizes, "ratios": ratios}}
    run = run_of(model=shape)
    model, preprocessing = build_model(run, None)
    state = TrainState(model.state_dict(), ["cat", "dog"], preprocessing.to_plain(), run.config.model_dump(mode="json"))
    again, _ = build_model(run, state)
    assert torch.equal(again.dbox_list, model.dbox_list)
    for other in ("voc", {"sizes": [11, *sizes[1:]], "ratios": ratios}):
        run = run_of(model={**shape, "dboxes": other})
        with pytest.raises(CheckpointError, match=r"set model.dboxes: {sizes: \[10.0, 20.0, "):
            build_model(run, state)


def test_a_step_follows_the_configuration():
    train = {"batch_size": 4, "iterations": 9, "optimizer": "sgd", "lr": 0.2, "momentum": 0.8, "weight_decay": 0.03}
    loss = {"jaccard_thresh": 0.4, "neg_pos": 2, "min_neg": 5}
    run = run_of(train={**train, "ema": 0.9, "clip_grad_norm": 7.0}, loss=loss)
    model, preprocessing = build_model(run, None)
    assert model.num_classes == 3  # with background
    step = build_step(run, model, preprocessing, schedule_of(10, **train))
    group = step.updater.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.2, 0.8, 0.03)
    assert (step.updater.ema.decay, step.updater.clip_grad_norm) == (0.9, 7.0)
    for criterion in (step.criterion, build_criterion(run.config, run.device)):
        assert (criterion.jaccard_thresh, criterion.neg_pos, criterion.min_neg) == (0.4, 2, 5)
    assert build_step(run_of(train=train), model, preprocessing, schedule_of(10, **train)).updater.ema is None


def test_place_freezes_and_sets_the_memory_format(monkeypatch):
    monkeypatch.setattr(build, "choose_training_format", lambda *_: torch.channels_last)
    model = SSD300(3, width=0.05)
    build.place(run_of(), model, "conv3_3")
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert all(each.weight.is_contiguous(memory_format=torch.channels_last) for each in convolutions)
    frozen = [not each.weight.requires_grad for each in convolutions]
    assert frozen == [True] * 7 + [False] * (len(convolutions) - 7)  # conv1_1 to conv3_3


@pytest.mark.parametrize("processes, share", [(3, 10), (40, 1)])
def test_the_automatic_batch_is_divided_among_processes(processes, share, monkeypatch):
    """Three processes can divide 30 of 32 photos evenly; the one that needs the most steps decides."""
    asked = []
    monkeypatch.setattr(build, "fewest_steps", lambda step, size, *_: asked.append(size) or 2)
    monkeypatch.setattr(World, "all_gather", lambda _, steps: [steps, 5, steps])
    run = run_of(train={"batch_size": "auto", "iterations": 9})
    run.world = World(size=processes)
    samples: Any = SimpleNamespace(cache=None)
    build.settle_batch_size(run, SSD300(3, width=0.05), IMAGENET, samples, None)
    assert asked == [share]
    assert (run.batch_size, run.config.train.accumulate) == (share * processes, 5)
    monkeypatch.setattr(World, "all_gather", lambda _, steps: [steps, None, steps])
    run.set_train(batch_size="auto")
    with pytest.raises(ConfigError, match="a step on a single photo needs more than the free memory of cpu"):
        build.settle_batch_size(run, SSD300(3, width=0.05), IMAGENET, samples, None)


@pytest.mark.parametrize(
    "batch_size, accumulate, before, now, tried",
    [(12, 3, 1, 1, []), (12, 3, 0, 1, []), (12, 3, 2, 2, []), (12, 3, 2, 1, [12]), (12, 3, 1, 2, [6]), (12, 3, 0, 8, [1])],
)
def test_a_resumed_run_keeps_its_batch_size_with_as_many_processes(batch_size, accumulate, before, now, tried, monkeypatch):
    asked = []
    monkeypatch.setattr(build, "fewest_steps", lambda step, size, *_: asked.append(size) or 1)
    monkeypatch.setattr(World, "all_gather", lambda _, steps: [steps])
    run = run_of(train={"batch_size": "auto", "iterations": 9})
    run.world = World(size=now)
    began = {"train": {"batch_size": batch_size, "accumulate": accumulate}}
    samples: Any = SimpleNamespace(cache=None)
    state = TrainState({}, [], {}, began, num_processes=before)
    build.settle_batch_size(run, SSD300(3, width=0.05), IMAGENET, samples, state)
    assert asked == tried
    assert run.config.train.accumulate == (1 if tried else accumulate)


def test_the_seed_determines_initial_weights():
    first, same, other = (build_model(run_of(seed=seed), None)[0].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


def test_init_from_loads_and_freezes_weights_and_prints_them(tmp_path, capsys):
    model, preprocessing = build_model(run_of(), None)
    save_checkpoint(tmp_path / "a.pt", TrainState(model.state_dict(), ["cat", "dog"], preprocessing.to_plain(), {}))
    capsys.readouterr()
    options = {"pretrained": "none", "width": 0.05, "init_from": str(tmp_path / "a.pt"), "freeze": "conv3_3"}
    again, _ = build_model(run_of(model=options), None)
    assert "a.pt" in capsys.readouterr().out
    first = next(again.parameters())
    assert torch.equal(first, next(model.parameters()))
    assert not first.requires_grad  # it is placed as the configuration says


def test_a_checkpoint_with_other_classes_is_refused():
    run = run_of()
    model, preprocessing = build_model(run, None)
    state = TrainState(model.state_dict(), ["dog", "cat"], preprocessing.to_plain(), run.config.model_dump(mode="json"))
    with pytest.raises(CheckpointError, match=r"name it in model\.init_from"):
        build_model(run, state)


def test_use_batch_size_of_a_state():
    run = run_of(train={"batch_size": "auto"})
    use_batch_size_of(run, TrainState({}, [], {}, {"train": {"batch_size": 12, "accumulate": 3}}))
    assert (run.batch_size, run.config.train.accumulate) == (12, 3)
    run = run_of(train={"batch_size": "auto"})
    use_batch_size_of(run, TrainState({}, [], {}, {}))  # of converted weights
    assert (run.batch_size, run.config.train.accumulate) == (32, 1)
    run = run_of(train={"batch_size": 8})
    use_batch_size_of(run, TrainState({}, [], {}, {"train": {"batch_size": 12, "accumulate": 3}}))
    assert run.batch_size == 8


def test_pruned_weights_come_from_the_main_process(monkeypatch, capsys):
    """It alone loads the pretrained features and the photos; every process raises its error."""
    model, theirs = (SSD300(3, width=0.05) for _ in range(2))
    gathered: list[Any] = []

    def start(pruned: SSD300, features: object, pixels: object, source: object, _: object) -> Preprocessing:
        assert (features, pixels, source) == ({"a": 1}, "pixels of 5", "slim.pt")
        return OXFORD

    def gather(world: World, value: object, patient: bool = False) -> list[Any]:
        assert patient
        gathered.append(value)
        return [answer, "another's"] if answer else [value]

    monkeypatch.setattr(build, "start_from_features", start)
    monkeypatch.setattr(build, "sample_pixels", lambda _, photos, __: f"pixels of {len(photos)}")
    monkeypatch.setattr(World, "all_gather", gather)
    run, features, photos = run_of(model={"pretrained": "slim.pt", "width": 0.05}), cast("Any", {"a": 1}), cast("Any", range(5))
    answer: Any = None
    assert build._prune_features(run, model, photos, features) == OXFORD
    assert gathered.pop() == ({}, OXFORD)  # alone it has its weights already
    assert "pruning VGG16's features in slim.pt to this network" in capsys.readouterr().out
    run.world = World(rank=0, size=2)
    build._prune_features(run, model, photos, features)
    assert gathered.pop()[0].keys() == model.state_dict().keys()
    run.world = World(rank=1, size=2)
    answer = (theirs.state_dict(), IMAGENET)
    assert build._prune_features(run, model, photos, features) == IMAGENET
    assert gathered.pop() is None
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in theirs.state_dict().items())
    answer = "no such layer"
    with pytest.raises(CheckpointError, match="no such layer"):
        build._prune_features(run, model, photos, features)
