import json
import multiprocessing
import os
import re
import shutil
from io import StringIO
from pathlib import Path

import pytest
import torch
import yaml
from torchvision.models.detection import ssd300_vgg16

import train
from data.dataset import parallel_reader
from data.dataset.annotation_loader import load_annotations
from data.layouts.find import find_format
from data.shapes import CLASSES
from scripts import new_config
from ssd.autoconfig import proposal
from ssd.autoconfig.timing import try_out
from ssd.config.file import load_config
from ssd.system.machine import num_cores
from ssd.weights import sources
from ssd.weights.checkpoint import TrainState, save_checkpoint
from tests.helpers.annotations import square_objects
from tests.helpers.formats import as_coco, copy_photos, load, write_yolo
from tests.helpers.network import refuse

pytestmark = pytest.mark.usefixtures("bare_machine")


@pytest.fixture
def folders(shapes_root, tmp_path):
    """The same photos as VOC, COCO and YOLO, without splits."""
    voc = load(shapes_root, "shapes", "trainval")
    shutil.copytree(shapes_root / "shapes", tmp_path / "voc")
    shutil.rmtree(tmp_path / "voc/ImageSets")
    copy_photos(voc, tmp_path / "coco/images")
    (tmp_path / "coco/all.json").write_text(json.dumps(as_coco(voc)))
    write_yolo(voc, tmp_path / "yolo/images", tmp_path / "yolo/labels")
    (tmp_path / "yolo/classes.txt").write_text("\n".join(CLASSES))
    return tmp_path


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


def test_existing_splits_are_used(shapes_root, tmp_path):
    assert new_config.main([str(shapes_root / "shapes"), "--output", str(tmp_path / "a.yaml")]) == 0
    config = load_config(tmp_path / "a.yaml")
    assert (config.data.train[0].split, config.data.val[0].split) == ("train", "val")
    assert config.data.train[0].val_fraction is None


def test_unusable_data_is_reported(folders, capsys):
    (folders / "empty").mkdir()
    for name, said in (("none", "no such folder"), ("empty", "unknown dataset format")):
        assert new_config.main([str(folders / name), "--output", str(folders / "a.yaml")]) == 2
        assert said in capsys.readouterr().err
    for number in range(3):
        (folders / f"voc/JPEGImages/{number:06}.jpg").write_bytes(b"x")
    assert new_config.main([str(folders / "voc"), "--output", str(folders / "a.yaml")]) == 2
    assert "000000.jpg: is not a supported image" in capsys.readouterr().err
    assert not (folders / "a.yaml").exists()
    (folders / "a.yaml").write_text("mine")
    assert new_config.main([str(folders / "yolo"), "--output", str(folders / "a.yaml")]) == 2
    assert (folders / "a.yaml").read_text() == "mine"


def test_a_test_split_is_never_divided(shapes_root, tmp_path, capsys):
    shutil.copytree(shapes_root / "shapes", tmp_path / "shapes")
    for name in ("train", "trainval"):
        (tmp_path / f"shapes/ImageSets/Main/{name}.txt").unlink()
    (tmp_path / "shapes/ImageSets/Main/val.txt").rename(tmp_path / "shapes/ImageSets/Main/Test.txt")
    assert new_config.main([str(tmp_path / "shapes"), "--output", str(tmp_path / "a.yaml")]) == 2
    assert "has the splits Test, but no pair for training and evaluation" in capsys.readouterr().err


def test_a_lone_train_split_is_divided(shapes_root, tmp_path):
    shutil.copytree(shapes_root / "shapes", tmp_path / "shapes")
    for name in ("val", "trainval"):
        (tmp_path / f"shapes/ImageSets/Main/{name}.txt").unlink()
    assert new_config.main([str(tmp_path / "shapes"), "--output", str(tmp_path / "a.yaml")]) == 0
    data = load_config(tmp_path / "a.yaml").data
    names = [
        {photos.path(i) for i in range(len(photos))}
        for photos in (load_annotations(part, data.root, data.class_names).photos for part in (data.train, data.val))
    ]
    listed = (tmp_path / "shapes/ImageSets/Main/train.txt").read_text().split()
    assert {Path(name).stem for name in names[0] | names[1]} == set(listed)
    assert not names[0] & names[1]


def test_a_few_damaged_photos_are_left_out_and_reported(shapes_root, tmp_path, capsys):
    """By name, and only once if both splits have the photo."""
    folder = tmp_path / "mine"
    shutil.copytree(shapes_root / "shapes", folder)
    train_list, val_list = (folder / f"ImageSets/Main/{split}.txt" for split in ("train", "val"))
    name = train_list.read_text().split()[0]
    val_list.write_text(val_list.read_text() + train_list.read_text())
    (folder / f"JPEGImages/{name}.jpg").write_bytes(b"x")
    assert new_config.main([str(folder), "--output", str(tmp_path / "a.yaml")]) == 0
    out = capsys.readouterr().out
    assert out.count(f"{name}.jpg: is not a supported image") == 1
    for split in ("train", "val"):
        assert re.search(rf"^note: data.{split}: 1 of \d+ photos cannot be read and were left out", out, re.MULTILINE)
    assert load_config(tmp_path / "a.yaml").data.damaged == "skip"
    assert re.search(
        r"damaged: skip +# 1 training photos and 1 validation photos cannot be read\n", (tmp_path / "a.yaml").read_text()
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_file_gives_the_reasons_for_its_settings(folders, monkeypatch, device):
    monkeypatch.setattr("torch.cuda.is_available", lambda: device == "cuda")
    output = folders / "a.yaml"
    assert new_config.main([str(folders / "voc"), "--output", str(output)]) == 0
    config, lines = load_config(output), output.read_text().splitlines()
    assert (config.model.pretrained, config.model.width) == ("none", 1.0 if device == "cuda" else 0.25)
    assert config.loss.min_neg == 3
    assert config.data.cache == "ram"
    assert (config.eval.every, config.eval.metric) == (config.checkpoint.every, "voc10")
    for line in lines:
        if line.startswith("  ") and not re.match("  (classes|root|train|val):", line):
            assert " # " in line, line
    assert not any(key in output.read_text() for key in ("null", "seed", "jaccard", "mirror"))


def test_no_recipe_files_are_needed(shapes_root, tmp_path, monkeypatch):
    """Users may edit or remove the recipes. The command works without them, in any folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/bccd.yaml").write_text("mine: [\n\n")
    assert new_config.main([str(shapes_root / "shapes")]) == 0
    assert load_config(tmp_path / "configs/shapes.yaml").output_dir == "runs/shapes"


NAMES = [
    "no", "1e3", "007", "1.10", "null", "~", "yes", "2020-01-01", "a: b", "x #y", "- z", "[k]", "US$5", "猫", "it's", '"',
    "a, b",
]  # fmt: skip


def test_class_names_are_unchanged(folders, monkeypatch):
    """The configuration has the class names of the annotations."""
    paths = sorted((folders / "voc/Annotations").glob("*.xml"))
    for number, path in enumerate(paths):
        path.write_text(re.sub("<name>.*?</name>", f"<name>{NAMES[number % len(NAMES)]}</name>", path.read_text()))
    for name in ("a.yaml", "007"):
        assert new_config.main([str(folders / "voc"), "--output", str(folders / name)]) == 0
        assert set(load_config(folders / name).data.class_names) == set(NAMES)
        assert set(yaml.safe_load((folders / name).read_text())["data"]["classes"]) == set(NAMES)
        monkeypatch.setattr(proposal, "WIDTH", 20)  # now with one name per line


def test_photos_are_cached_in_memory_only_if_they_fit(monkeypatch):
    photos = square_objects(150)
    for free, cached in ((4 * 270_000 + 4, True), (4 * 270_000 - 4, False)):
        monkeypatch.setattr(proposal, "free_memory", lambda free=free: free)
        assert ("data.cache" in proposal.cache_setting(photos, "cpu")) == cached


def test_photos_are_read_in_parallel_with_a_progress_bar(folders, monkeypatch):
    seen = {}

    def load(*arguments, workers, progress, **options):
        seen["workers"] = workers
        progress(10, 40)
        progress(40, 40)
        return load_annotations(*arguments, **options)

    bars = []

    class Bar(proposal.tqdm):
        def __init__(self, desc, disable, **options):
            assert disable is None  # a bar on a terminal, nothing in a log file
            super().__init__(desc=desc, file=StringIO(), **options)
            bars.append(self)

    monkeypatch.setattr(proposal, "load_annotations", load)
    monkeypatch.setattr(proposal, "tqdm", Bar)
    assert new_config.main([str(folders / "voc"), "--output", str(folders / "a.yaml")]) == 0
    assert seen["workers"] == num_cores()
    assert [(bar.desc, bar.n, bar.total) for bar in bars] == [
        ("counting objects", 32, 32), ("reading train", 40, 40), ("reading val", 40, 40)
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["voc", "coco", "yolo"])
def test_objects_are_counted_in_parallel(folders, kind, monkeypatch):
    alone = find_format(folders / kind)[1].class_counts()
    monkeypatch.setattr(parallel_reader, "MIN_PARALLEL", 0)
    monkeypatch.setattr(parallel_reader, "BATCH", 3)
    watched = []
    shared = find_format(folders / kind)[1].class_counts(2, lambda *done: watched.append(done))
    assert list(shared.items()) == list(alone.items())  # in the same order
    assert sum(alone.values()) == 106
    assert watched[-1] == ((1, 1) if kind == "coco" else (32, 32))
    assert len(watched) == (1 if kind == "coco" else 11)
    workers = parallel_reader.count_in_files(
        [str(i) for i in range(12)], lambda _: [os.getpid()], 2, parallel_reader.no_progress
    )
    assert os.getpid() not in workers
    assert list(workers.values()) == [6, 6]


def test_ctrl_c_while_processes_count(folders, monkeypatch, capsys):
    class Bar(proposal.tqdm):
        def update(self, n=1):
            raise KeyboardInterrupt

    monkeypatch.setattr(parallel_reader, "MIN_PARALLEL", 0)
    monkeypatch.setattr(parallel_reader, "BATCH", 3)
    monkeypatch.setattr(proposal, "num_cores", lambda: 2)
    monkeypatch.setattr(proposal, "tqdm", Bar)
    assert new_config.main([str(folders / "voc"), "--output", str(folders / "a.yaml")]) == 130
    assert capsys.readouterr().err == "stopped by SIGINT\n"
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("place", ["find_format", "load_annotations", "dbox_coverages", "try_out"])
def test_ctrl_c_ends_the_command_with_one_line(folders, monkeypatch, capsys, place):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(proposal, place, interrupted)
    assert new_config.main([str(folders / "voc"), "--output", str(folders / "a.yaml")]) == 130
    assert capsys.readouterr().err == "stopped by SIGINT\n"
    assert not (folders / "a.yaml").exists()


def test_the_user_sets_the_time(folders, capsys):
    lengths = {}
    for words in ([], ["--minutes", "1"]):
        assert new_config.main([str(folders / "voc"), "--output", str(folders / "a.yaml"), "--overwrite", *words]) == 0
        lengths[len(words)] = load_config(folders / "a.yaml").train.epochs
    assert lengths[2] < lengths[0] / 2
    assert re.search(r"with --minutes [234]: \d+ epochs", capsys.readouterr().out)
    for wrong in ("0", "-3", "soon"):
        with pytest.raises(SystemExit) as end:
            new_config.main([str(folders / "voc"), "--minutes", wrong])
        assert end.value.code == 2
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


def test_the_user_chooses_the_weights(folders, monkeypatch, capsys):
    monkeypatch.setattr(sources, "fetch", lambda *_, **__: pytest.fail("downloaded"))
    words = [str(folders / "voc"), "--output", str(folders / "a.yaml"), "--overwrite"]
    assert new_config.main([*words, "--no-download"]) == 0
    assert "warning: COCO weights are not in " in capsys.readouterr().out
    assert new_config.main([*words, "--scratch"]) == 0
    assert "warning" not in capsys.readouterr().out
    assert load_config(folders / "a.yaml").model.pretrained == "none"
    save_checkpoint(sources.SHIPPED["slim"], TrainState({}, [], {}, {}))
    assert new_config.main([*words, "--no-download"]) == 0
    assert "start: slim; COCO weights are not in " in capsys.readouterr().out
    config = load_config(folders / "a.yaml")
    assert (config.model.pretrained, config.model.freeze, config.train.batch_size) == ("slim", "conv3_3", 8)
