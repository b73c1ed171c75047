"""The slim network included in the project, with random weights as a stand-in, and exported weights."""

import subprocess

import pytest
import torch

from scripts import export
from ssd.autoconfig.recipes import SLIM
from ssd.config.schema import VOC_CLASSES
from ssd.dbox import spec_of
from ssd.model import SSD300
from ssd.preprocessing import IMAGENET
from ssd.weights import sources
from ssd.weights.checkpoint import CheckpointError, TrainState, load_checkpoint, save_checkpoint, weights_alone
from ssd.weights.pretrained import init_from, load_pretrained, network_of
from tests.helpers.paths import ROOT

CLASSES = ["person", "bicycle", "tvmonitor"]
SHAPE = {"pretrained": "none", "batch_norm": "backbone", "width": 0.25, "dboxes": "voc", "init_from": "runs/a.pt"}


def trained_state(classes=CLASSES) -> TrainState:
    """Return the state after a run: statistics, averaged weights and optimiser state."""
    torch.manual_seed(0)
    network = SSD300(len(classes) + 1, "backbone", 0.25)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    network.backbone.conv1_1.norm.running_var[0] = 1e6  # float16 ends at 65504
    weights = network.state_dict()
    optimizer = {"state": {0: {"exp_avg": torch.randn(300, 300)}}, "param_groups": []}
    average = {name: value.clone() for name, value in weights.items()}
    weights = {name: torch.zeros_like(value) for name, value in weights.items()}  # only the average is used
    return TrainState(weights, classes, IMAGENET.to_plain(), {"model": SHAPE}, 7, optimizer=optimizer, average=average)


@pytest.fixture
def slim(tmp_path, monkeypatch):
    state = trained_state()
    monkeypatch.setitem(sources.SHIPPED, "slim", tmp_path / "slim.pt")
    save_checkpoint(sources.SHIPPED["slim"], weights_alone(state))
    return state


def test_slim_matches_class_scores_by_name(slim):
    ours = SSD300(4, "backbone", 0.25)
    preprocessing, notes = load_pretrained(ours, "slim", ["tv", "widget", "Person"])
    assert preprocessing == IMAGENET
    assert "model.pretrained: slim: newly initialised classes: widget" in notes
    assert not any(note.startswith("warning") or "left" in note for note in notes)
    theirs = network_of(slim)
    images = torch.randn(1, 3, 300, 300)
    with torch.no_grad():
        loc, conf, _ = ours.eval()(images)
        their_loc, their_conf, _ = theirs(images)
    assert (loc - their_loc).abs().max() < 5e-3 * their_loc.abs().max()  # float16 keeps 11 bits
    assert (conf[..., [0, 1, 3]] - their_conf[..., [0, 3, 1]]).abs().max() < 5e-3 * their_conf.abs().max()
    assert all(value.dtype == torch.float32 for value in ours.state_dict().values() if value.is_floating_point())


def test_missing_slim_file_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(sources.SHIPPED, "slim", tmp_path / "slim.pt")
    with pytest.raises(CheckpointError, match=r"slim\.pt is missing; .* set model\.pretrained: none"):
        load_pretrained(SSD300(2, "backbone", 0.25), "slim", ["a"])


@pytest.mark.parametrize("before, now", [(True, "backbone"), (False, "none")])
def test_checkpoints_with_boolean_batch_norm(tmp_path, before, now):
    """As checkpoints and as exported weights they give the same outputs as with the word."""
    torch.manual_seed(0)
    network = SSD300(3, now, 0.05).eval()
    shape = {"pretrained": "imagenet", "dboxes": "voc", "batch_norm": before, "width": 0.05}
    state = TrainState(network.state_dict(), ["a", "b"], IMAGENET.to_plain(), {"model": shape})
    images = torch.randn(1, 3, 300, 300)
    for name, written, precision in (("whole", state, 0.0), ("alone", weights_alone(state), 5e-3)):
        save_checkpoint(tmp_path / name, written)
        with torch.no_grad():
            for ours, expected in zip(network_of(load_checkpoint(tmp_path / name))(images), network(images), strict=True):
                torch.testing.assert_close(ours, expected, rtol=0, atol=precision * float(expected.abs().max()))


def test_exported_weights_are_small_and_give_the_same_outputs(tmp_path, capsys):
    state = trained_state()
    whole, alone = tmp_path / "best.pt", tmp_path / "best.weights.pt"
    save_checkpoint(whole, state)
    assert export.main([str(whole), "--format", "weights"]) == 0
    assert f"written: {alone}, " in capsys.readouterr().out
    parameters = sum(value.numel() for value in state.weights.values())
    assert alone.stat().st_size < 2.2 * parameters
    read = load_checkpoint(alone)
    assert (read.classes, read.preprocessing) == (state.classes, state.preprocessing)
    assert (read.optimizer, read.average, read.iteration) == ({}, None, 0)
    shape = {**SHAPE, "init_from": None, "freeze": None}  # no local paths
    assert read.config == {"model": shape, "data": {"tiles": None}}
    for name, value in state.weights.items():
        assert read.weights[name].dtype == value.dtype
        torch.testing.assert_close(read.weights[name], value, rtol=2**-11, atol=1e-7)
    assert read.weights["backbone.conv1_1.norm.running_var"][0] == 1e6
    _, notes = init_from(SSD300(4, "backbone", 0.25), alone, CLASSES)
    assert len(notes) == 1  # everything fits


def test_exported_weights_never_overwrite_the_checkpoint(tmp_path, capsys):
    save_checkpoint(tmp_path / "best.pt", trained_state())
    before = (tmp_path / "best.pt").read_bytes()
    assert export.main([str(tmp_path / "best.pt"), "--format", "weights", "--output", str(tmp_path / "best.pt")]) == 2
    assert "is the checkpoint itself" in capsys.readouterr().err
    assert (tmp_path / "best.pt").read_bytes() == before


SHIPPED = [
    (sources.SHIPPED["half"], 0.5, 16e6),
    (sources.SHIPPED["slim"], 0.25, 8e6),
]


@pytest.mark.parametrize("path, width, size", SHIPPED, ids=["half", "slim"])
def test_shipped_file(path, width, size):
    ignored = subprocess.run(["git", "check-ignore", "-q", str(path)], cwd=ROOT, check=False)
    assert ignored.returncode in (1, 128)  # 128: no git repository here
    assert path.stat().st_size < size
    state = load_checkpoint(path)
    assert tuple(state.classes) == VOC_CLASSES
    assert state.class_scores.keys() == set(VOC_CLASSES)
    assert state.config["model"]["dboxes"] == SLIM.dboxes
    spec = spec_of(state.config["model"]["dboxes"])
    whole = SSD300(len(state.classes) + 1, "backbone", width, spec).eval()
    whole.load_state_dict(state.weights)
    images = torch.randn(1, 3, 300, 300)
    with torch.no_grad():
        for ours, expected in zip(network_of(state)(images), whole(images), strict=True):
            assert torch.equal(ours, expected)
    model = SSD300(3, "backbone", width, spec)
    _, notes = load_pretrained(model, path.stem, ["person", "robot"])
    assert any("newly initialised classes: robot" in note for note in notes)
    assert not any("not loaded" in note for note in notes)
