import pytest
import torch

from ssd.config_file import parse_config
from ssd.model import SSD300
from ssd.preparation import IMAGENET
from ssd.system.distributed import World
from ssd.training.build import build_model, schedule_warnings, synchronise_norms
from ssd.training.run import Run
from ssd.training.schedule import Schedule
from ssd.weights.checkpoint import CheckpointError, TrainState


@pytest.mark.parametrize(
    ("shape", "named", "warmup", "said"),
    [
        ("milestones", None, 10, []),
        ("milestones", (50, 80), 10, []),
        ("milestones", (50, 100), 10, ["train.milestones [100] lie beyond the last iteration and have no effect"]),
        ("cosine", None, 10, []),
        ("cosine", (50, 80), 10, ["train.milestones have no effect with train.schedule: cosine"]),
        ("cosine", None, 100, ["train.warmup 100 is not over before the last iteration, 100"]),
    ],
)
def test_what_has_no_effect_is_said(shape, named, warmup, said):
    schedule = Schedule(
        iterations=100, num_samples=8, batch_size=4, accumulate=1, lr=0.1, warmup=warmup, shape=shape,
        milestones=named or (66, 83), log_every=1, eval_every=10, checkpoint_every=10, keep=1,
    )  # fmt: skip
    assert schedule_warnings(schedule, named) == said


@pytest.mark.parametrize(
    "network, said",
    [({}, False), ({"batch_norm": "backbone"}, True), ({"conv4_3_norm": "batch"}, True), ({"conv4_3_norm": "none"}, False)],
    ids=str,
)
def test_several_processes_on_cpus_are_told_of_their_own_statistics(network, said, capsys):
    source = [{"path": "shapes"}]
    options = {"pretrained": "none", "width": 0.05, **network}
    run = Run.alone(parse_config({"data": {"train": source, "val": source}, "model": options}))
    run.world = World(size=2)
    synchronise_norms(run, SSD300(2, width=0.05, **network))
    assert ("each process's share of the batch" in capsys.readouterr().out) is said


@pytest.mark.parametrize(
    "network, said",
    [
        ({"batch_norm": "all"}, "set model.batch_norm: backbone, or start"),
        ({"conv4_3_norm": "none", "width": 0.1}, "set model.width: 0.05, model.conv4_3_norm: l2, or start"),
        ({"dboxes": "coco"}, "set model.dboxes: voc, or start"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_model_is_told_by_what_differs(network, said):
    source, shape = [{"path": "shapes"}], {"pretrained": "none", "batch_norm": True, "width": 0.05, "dboxes": "voc"}
    weights = SSD300(2, "backbone", 0.05).state_dict()
    state = TrainState(weights, ["cat"], IMAGENET.to_plain(), {"model": {**shape, "pretrained": "slim"}})
    data = {"train": source, "val": source, "classes": ["cat"]}
    run = Run.alone(parse_config({"data": data, "model": {**shape, **network}}))
    with pytest.raises(CheckpointError, match=said):
        build_model(run, state)
    same = {"sizes": [30, 60, 111, 162, 213, 264, 315], "ratios": [[2], [2, 3], [2, 3], [2, 3], [2], [2]]}
    build_model(Run.alone(parse_config({"data": data, "model": {**shape, "dboxes": same}})), state)


def test_a_run_with_dboxes_of_its_own_is_resumed_with_the_same_ones_alone():
    source = [{"path": "shapes"}]
    data = {"train": source, "val": source, "classes": ["cat"]}
    sizes, ratios = [10, 20, 40, 80, 160, 240, 300], [[4], [2, 5], [2, 3], [2, 3], [2], [1.5]]
    shape = {"pretrained": "none", "width": 0.05, "dboxes": {"sizes": sizes, "ratios": ratios}}
    run = Run.alone(parse_config({"data": data, "model": shape}))
    model, preparation = build_model(run, None)
    state = TrainState(model.state_dict(), ["cat"], preparation.to_plain(), run.config.model_dump(mode="json"))
    again, _ = build_model(run, state)
    assert torch.equal(again.dbox_list, model.dbox_list)
    for other in ("voc", {"sizes": [11, *sizes[1:]], "ratios": ratios}):
        run = Run.alone(parse_config({"data": data, "model": {**shape, "dboxes": other}}))
        with pytest.raises(CheckpointError, match=r"set model.dboxes: {sizes: \[10.0, 20.0, "):
            build_model(run, state)
