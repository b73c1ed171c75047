"""Unusual class names in annotations, configuration, checkpoint, report and results. For exported files, see
tests/scripts/test_export.py."""

import csv
import html
import io
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch

import train
from data.layouts.find import find_format
from scripts import detect, new_config
from ssd.config import load_config
from ssd.weights.checkpoint import TrainState, load_checkpoint, save_checkpoint
from tests.helpers.annotations import load

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("bare_machine")]

WRITTEN = (
    "1e3", "no", "007", "1.10", "US$5_$x^", "a,b", "crème brûlée", "手袋", '"quoted"', "tab\tin", "<tag>&",
    " padded ", "=2+2", "\\",
)  # fmt: skip
NAMES = [name.strip() for name in WRITTEN]
SMALL = ["train.epochs=null", "train.iterations=1", "train.batch_size=1", "model.width=0.05", "data.workers=0", "device=cpu"]


def annotate(folder: Path) -> None:
    """Write two photos, one per split, with an object of each class."""
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / split / f"{split}.jpg"), pixels)
        root = ElementTree.Element("annotation")
        for place, name in enumerate(WRITTEN):
            item = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(item, "name").text = name
            box = ElementTree.SubElement(item, "bndbox")
            for side, value in zip(("xmin", "ymin", "xmax", "ymax"), (5 + place, 9, 65 + place, 70), strict=True):
                ElementTree.SubElement(box, side).text = str(value)
        ElementTree.ElementTree(root).write(folder / split / f"{split}.xml", encoding="utf-8")


def find_one_of_each(state: TrainState) -> None:
    """Set the weights so that the network finds one object of each class in any photo, all in the same place."""
    last = max(int(name.split(".")[1]) for name in state.weights if name.startswith("conf."))
    for name, weights in state.weights.items():
        if name.startswith(("conf.", "loc.")):
            weights.zero_()
        if name.startswith("conf.") and name.endswith("bias"):
            logits = weights.view(-1, len(NAMES) + 1)  # a row per DBox of a cell
            logits[:, 0] = 20
            if int(name.split(".")[1]) == last:
                logits[0] = torch.linspace(0, -1, len(NAMES) + 1)
                logits[0, 0] = -20


def names_of(folder: Path, path: str) -> list[str]:
    """Return the classes of the objects in a data set, as its reader gives them."""
    photos = load(folder / path, classes=NAMES).photos
    return [NAMES[label] for label in photos.labels]


def test_class_names_survive_every_step(tmp_path, monkeypatch, capfd):
    """Nothing is written to stderr, in particular no warnings of libraries."""
    monkeypatch.chdir(tmp_path)
    annotate(tmp_path / "mine")
    assert new_config.main(["mine", "--output", "mine.yaml"]) == 0
    assert train.main(["--config", "mine.yaml", "output_dir=run", *SMALL]) == 0
    check_run(tmp_path / "run")
    for path in ("mine.yaml", "run/config.yaml"):
        assert sorted(load_config(tmp_path / path).data.class_names) == sorted(NAMES)
    state = load_checkpoint(tmp_path / "run/checkpoints/best.pt")
    assert sorted(state.classes) == sorted(NAMES)
    find_one_of_each(state)
    save_checkpoint(tmp_path / "found.pt", state)
    check_results(tmp_path, state.classes)
    assert capfd.readouterr().err == ""


def check_run(run: Path) -> None:
    """Check the class names in a run's files."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert set(next(record["ap"] for record in records if record["kind"] == "eval")) == set(NAMES)
    report = (run / "report.html").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"<tr><td>{html.escape(name)}<td>" in report
    assert "<tag>" not in report


def check_results(folder: Path, classes: list[str]) -> None:
    """Check the files of detect.py for one photo, highest score first, and read them as data sets."""
    words = ["found.pt", "mine/val/val.jpg", "--output", "out", "--score", "0.01", "--formats", "json,csv,voc,coco"]
    assert detect.main([*words, "--device", "cpu"]) == 0
    (entry,) = json.loads((folder / "out/detections.json").read_text(encoding="utf-8"))
    assert [item["class"] for item in entry["objects"]] == classes
    with open(folder / "out/detections.csv", newline="", encoding="utf-8") as file:
        assert [row["class"] for row in csv.DictReader(file)] == classes
    for layout, path in (("voc", "Annotations/val.xml"), ("coco", "coco.json")):
        again = folder / layout
        again.mkdir()
        for file in (folder / "mine/val/val.jpg", folder / "out" / path):
            (again / file.name).write_bytes(file.read_bytes())
        assert names_of(folder, layout) == classes
        assert set(find_format(again)[1].class_counts()) == set(classes)


def test_a_terminal_without_unicode_gets_escaped_names(tmp_path, monkeypatch):
    """On Windows, output redirected to a file has such an encoding."""
    annotate(tmp_path / "mine")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    assert new_config.main([str(tmp_path / "mine"), "--output", str(tmp_path / "mine.yaml")]) == 0
    stream.flush()
    shown = stream.buffer.getvalue().decode("cp1252")
    assert r"crème brûlée (2), \u624b\u888b (2)" in shown
