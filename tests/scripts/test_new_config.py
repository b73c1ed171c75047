import multiprocessing
import re

import pytest
import torch
from torchvision.models.detection import ssd300_vgg16, ssdlite320_mobilenet_v3_large

import train
from data.dataset import parallel_reader
from data.shapes import CLASSES
from scripts import new_config
from ssd.architecture import ARCHITECTURES
from ssd.autoconfig import proposal, timing
from ssd.autoconfig.recipes import LIGHT
from ssd.autoconfig.timing import Timings, try_out
from ssd.config.file import load_config
from ssd.weights import sources
from ssd.weights.checkpoint import TrainState, save_checkpoint
from tests.helpers.offline import refuse
from tests.helpers.runs import wait_until

pytestmark = pytest.mark.usefixtures("bare_machine")


@pytest.mark.parametrize("kind", ["voc", "coco", "yolo"])
def test_a_folder_of_any_format_trains(folders, kind, capsys, monkeypatch):
    monkeypatch.chdir(folders)
    output = folders / f"{kind}.yaml"
    assert new_config.main([kind, "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert f"{kind.upper()} layout" in shown
    config = load_config(output)
    assert sorted(config.data.class_names) == sorted(CLASSES)
    assert config.data.root == "."
    small = ["train.epochs=null", "train.iterations=1", "model.width=0.1", "train.batch_size=2", "data.workers=0"]
    assert train.main(["--config", str(output), *small, f"output_dir={folders / 'run'}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("mAP@0.5 (VOC10 area)")


def test_no_recipe_files_are_needed(shapes_root, tmp_path, monkeypatch):
    """Users may edit or remove the recipes. The command works without them, in any folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/bccd.yaml").write_text("mine: [\n\n")
    assert new_config.main([str(shapes_root / "shapes")]) == 0
    assert load_config(tmp_path / "configs/shapes.yaml").output_dir == "runs/shapes"


def test_ctrl_c_while_processes_count(folders, monkeypatch, proposed):
    class Bar(proposal.tqdm):
        def update(self, n=1):
            raise KeyboardInterrupt

    monkeypatch.setattr(parallel_reader, "MIN_PARALLEL", 0)
    monkeypatch.setattr(parallel_reader, "BATCH", 3)
    monkeypatch.setattr(proposal, "num_cores", lambda: 2)
    monkeypatch.setattr(proposal, "tqdm", Bar)
    before = set(multiprocessing.active_children())  # of other tests
    assert proposed(folders / "voc", code=130) == "stopped by SIGINT\n"
    wait_until(lambda: set(multiprocessing.active_children()) <= before)  # a busy machine takes its time


@pytest.mark.parametrize("place", ["find_format", "load_annotations", "dbox_coverages", "try_out"])
def test_ctrl_c_ends_the_command_with_one_line(folders, monkeypatch, proposed, place):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(proposal, place, interrupted)
    assert proposed(folders / "voc", code=130) == "stopped by SIGINT\n"
    assert not (folders / "a.yaml").exists()


def test_the_user_sets_the_time(folders, capsys, proposed):
    lengths = {}
    for words in ([], ["--minutes", "1"]):
        shown = proposed(folders / "voc", "--overwrite", *words)
        lengths[len(words)] = load_config(folders / "a.yaml").train.epochs
    assert lengths[2] < lengths[0] / 2
    assert re.search(r"with --minutes [234]: \d+ epochs", shown)
    for wrong in ("0", "-3", "soon"):
        with pytest.raises(SystemExit, match=r"^2$"):
            new_config.main([str(folders / "voc"), "--minutes", wrong])
        assert "argument --minutes: expected an integer ≥ 1" in capsys.readouterr().err


def test_a_run_starts_from_coco_weights_in_the_hub_folder(folders, monkeypatch, capsys):
    """With torchvision's network and random weights; the speed is measured."""
    monkeypatch.undo()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folders / "hub"))
    monkeypatch.setattr(sources, "fetch", refuse)
    (folders / "hub/checkpoints").mkdir(parents=True)
    path = sources.hub_file(sources.torchvision_url("coco"))
    torch.save(ssd300_vgg16(weights=None, weights_backbone=None).state_dict(), path)
    measured = []

    def short_trial(config, freeze, data, start):
        few = config.model_copy(update={"model": config.model.model_copy(update={"width": 0.1})})
        measured.append((freeze, try_out(few, freeze, data, start)))
        return measured[0][1]

    monkeypatch.setattr(proposal, "try_out", short_trial)
    output = folders / "a.yaml"
    assert new_config.main([str(folders / "voc"), "--output", str(output), "--minutes", "600"]) == 0
    ((freeze, timings),) = measured
    assert freeze == "conv3_3"
    assert all(value > 0 for value in timings if isinstance(value, float))
    config = load_config(output)
    assert (config.model.pretrained, config.model.dboxes, config.model.width) == ("coco", "coco", 1.0)
    small = ["train.epochs=null", "train.iterations=1", "train.batch_size=1", "data.workers=0", "device=cpu", "train.ema=null"]
    assert train.main(["--config", str(output), *small, f"output_dir={folders / 'run'}"]) == 0
    shown = capsys.readouterr().out
    assert "model.pretrained: coco: 71 of 71 tensors loaded from" in shown
    assert shown.splitlines()[-1].startswith("mAP@0.5 (VOC10 area)")


def test_the_user_chooses_the_weights(folders, monkeypatch, proposed):
    monkeypatch.setattr(sources, "fetch", lambda *_, **__: pytest.fail("downloaded"))
    assert "warning: COCO weights are not in " in proposed(folders / "voc", "--no-download")
    assert "warning" not in proposed(folders / "voc", "--overwrite", "--scratch")
    assert load_config(folders / "a.yaml").model.pretrained == "none"
    save_checkpoint(sources.SHIPPED["slim"], TrainState({}, [], {}, {}))
    monkeypatch.setattr(proposal, "share_recognised", lambda *_: 0.9)
    assert "start: slim; COCO weights are not in " in proposed(folders / "voc", "--overwrite", "--no-download")
    config = load_config(folders / "a.yaml")
    assert (config.model.pretrained, config.model.freeze, config.train.batch_size) == ("slim", "conv3_3", 8)
    monkeypatch.setattr(proposal, "share_recognised", lambda *_: 0.1)
    shown = proposed(folders / "voc", "--overwrite", "--no-download")
    assert (
        "slim recognises 10% of the objects, whatever their classes; all layers are trained, at a learning rate of 0.004"
        in shown
    )
    config = load_config(folders / "a.yaml")
    assert (config.model.pretrained, config.model.freeze, config.train.lr) == ("slim", None, 4e-3)


@pytest.mark.parametrize("names, lr", [(("cat", "Television"), 5e-5), (("cat", "widget"), 1e-3)])
def test_classes_that_the_weights_know_get_small_steps(folders, monkeypatch, proposed, names, lr):
    monkeypatch.setattr(proposal, "share_recognised", lambda *_: 0.9)
    for path in (folders / "voc/Annotations").glob("*.xml"):
        text = path.read_text()
        for i, shape in enumerate(CLASSES):
            text = text.replace(f"<name>{shape}</name>", f"<name>{names[i % 2]}</name>")
        path.write_text(text)
    save_checkpoint(sources.SHIPPED["half"], TrainState({}, [], {}, {}))
    note = "note: the half weights know all these classes: scripts/detect.py half PHOTOS detects them without training"
    assert (note in proposed(folders / "voc", "--no-download")) == (lr < 1e-3)
    config = load_config(folders / "a.yaml")
    assert (config.model.pretrained, config.model.width, config.train.lr) == ("half", 0.5, lr)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_architecture_is_timed_and_fitted_and_trains(name, folders, monkeypatch, proposed, capsys):
    """With objects too small for the named DBoxes. SSDLite starts from torchvision's network with random weights."""
    row = ARCHITECTURES[name]
    for path in (folders / "voc/Annotations").glob("*.xml"):
        path.write_text(shrink("y", shrink("x", path.read_text())))
    if row.separable:
        weights = sources.hub_file(sources.torchvision_url("coco", row))
        weights.parent.mkdir()
        torch.save(ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).state_dict(), weights)
    timed = []
    try_out_fast = proposal.try_out

    def noted(config, *others):
        timed.append(config.model.architecture)
        return try_out_fast(config, *others)

    monkeypatch.setattr(proposal, "try_out", noted)
    shown = proposed(folders / "voc", "--architecture", name)
    assert timed == [name]
    assert (f"network: {name}; requested by --architecture" in shown) == (name != "ssd300")
    model = load_config(folders / "a.yaml").model
    assert (model.architecture, model.pretrained) == (name, "coco" if row.separable else "none")
    assert len(model.dboxes.sizes) == len(row.maps) + 1
    assert model.dboxes.sizes[0] < min(sizes[0] for sizes in row.dbox_sizes.values())
    small = ["train.epochs=null", "train.iterations=1", "train.batch_size=1", "data.workers=0", "device=cpu", "train.ema=null"]
    small += [] if row.separable else ["model.width=0.1"]
    assert train.main(["--config", str(folders / "a.yaml"), *small, f"output_dir={folders / 'run'}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("mAP@0.5 (VOC10 area)")


def shrink(axis: str, text: str) -> str:
    """Make a side of each object 6 pixels long."""
    pattern = rf"(<{axis}min>(\d+)<.*?<{axis}max>)\d+"
    return re.sub(pattern, lambda match: f"{match[1]}{int(match[2]) + 6}", text, flags=re.DOTALL)


def test_a_slow_machine_gets_the_light_network_if_its_weights_are_there(folders, monkeypatch, capsys):
    """The light network is really timed; the full one, whose weights are there too, is said to be slow."""
    monkeypatch.undo()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folders / "hub"))
    monkeypatch.setattr(sources, "fetch", refuse)
    (folders / "hub/checkpoints").mkdir(parents=True)
    sources.hub_file(sources.torchvision_url("coco")).touch()
    weights = sources.hub_file(sources.torchvision_url("coco", ARCHITECTURES[LIGHT]))
    torch.save(ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).state_dict(), weights)

    def short_trial(config, freeze, data, start):
        if config.model.architecture != LIGHT:
            return Timings(5, 1000.0, 1, 0.1, 1, 2)
        assert freeze == "block3"
        few = {"model": config.model.model_copy(update={"width": 0.2})}
        return try_out(config.model_copy(update=few), freeze, data, start)

    monkeypatch.setattr(proposal, "try_out", short_trial)
    monkeypatch.setattr(timing, "SECONDS", 0)
    assert new_config.main([str(folders / "voc"), "--output", str(folders / "a.yaml")]) == 0
    shown = capsys.readouterr().out
    assert f"network: {LIGHT}; the full network would see " in shown
    assert re.search(f"architecture: {LIGHT} +# the full network would see ", (folders / "a.yaml").read_text())
    config = load_config(folders / "a.yaml")
    assert (config.model.pretrained, config.model.freeze, config.model.width) == ("coco", "block3", 1.0)


def test_an_unknown_architecture(folders, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        new_config.main([str(folders / "voc"), "--architecture", "ssd511"])
    assert "argument --architecture: " in capsys.readouterr().err
