import json
import re
import shutil

import numpy as np
import pytest
from pycocotools.coco import COCO

from data.layouts.voc_annotation import parse_annotation
from data.shapes import CLASSES
from scripts.check_labels import main
from ssd.evaluation.label_faults import FAULTS
from ssd.weights.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def trained(checkpoint, shapes_root, tmp_path):
    """The checkpoint, with the configuration of a run on the shapes."""
    state = load_checkpoint(checkpoint)
    sources = {part: [{"path": "shapes", "split": part}] for part in ("train", "val")}
    data = {"classes": list(CLASSES), "root": str(shapes_root), **sources}
    state.config.update(output_dir=str(tmp_path / "run"), device="cpu", data=data)
    save_checkpoint(tmp_path / "best.pt", state)
    return tmp_path / "best.pt"


def test_files_for_labelling_tools_and_a_page(trained, shapes_root, tmp_path, capsys):
    assert main([str(trained), "--formats", "coco,voc", "--pictures", "3"]) == 0
    folder = tmp_path / "run/labels_train"
    coco = COCO(str(folder / "coco.json"))
    annotations = coco.loadAnns(coco.getAnnIds())
    assert f"{len(annotations)} labels to check" in capsys.readouterr().out
    names = {category["id"]: category["name"] for category in coco.loadCats(coco.getCatIds())}
    for annotation in annotations:
        fault, _, name = names[annotation["category_id"]].partition(": ")
        assert fault in FAULTS
        assert name in CLASSES
    # In the order of the list, whose first one has the score 1.
    scores = [annotation["score"] for annotation in annotations]
    assert max(scores) == scores[0] == 1
    assert len(set(scores)) == len(scores)
    assert min(scores) >= 0
    images = [image["file_name"] for image in json.loads((folder / "coco.json").read_text())["images"]]
    assert set(images) <= {path.name for path in (shapes_root / "shapes/JPEGImages").iterdir()}
    best = [max(a["score"] for a in annotations if a["image_id"] == number) for number in range(1, len(images) + 1)]
    assert best == sorted(best, reverse=True)
    # What nothing was found for has the box of its label.
    for annotation in annotations:
        if names[annotation["category_id"]].startswith("nothing there"):
            path = shapes_root / "shapes/Annotations" / images[annotation["image_id"] - 1].replace(".jpg", ".xml")
            labels = parse_annotation(path, {name: i for i, name in enumerate(CLASSES)}).boxes
            x, y, width, height = annotation["bbox"]
            assert np.abs(labels - [x, y, x + width, y + height]).max(axis=1).min() < 0.02
    assert len(list((folder / "Annotations").glob("*.xml"))) == len(images)
    page = (folder / "labels.html").read_text()
    assert page.count("<img") == 3
    assert len(re.findall(r"<figcaption>[123]\. \d{6}\.jpg: ", page)) == 3


def test_other_photos_and_a_checkpoint_without_a_run(trained, checkpoint, tmp_path, capsys):
    assert main([str(trained), "--split", "val", "--output", str(tmp_path / "out"), "--pictures", "0"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"coco.json", "labels.html"}
    assert main([str(checkpoint)]) == 2
    message = "contains only weights and names no photos; use checkpoints/best.pt of a run"
    assert capsys.readouterr().err == f"error: {checkpoint}: {message}\n"


def test_another_machine_than_in_training(trained, shapes_root, tmp_path, capsys):
    state = load_checkpoint(trained)
    state.config["device"] = "cuda:3"
    state.config["train"] = {"iterations": 1, "precision": "float16", "compile": True}
    state.config["data"]["root"] = "/elsewhere"
    save_checkpoint(trained, state)
    words = [str(trained), "--output", str(tmp_path / "out"), "--pictures", "0"]
    assert main(words) == 2
    assert "/elsewhere/shapes" in capsys.readouterr().err
    assert main([*words, f"data.root={shapes_root}"]) == 0


def test_photos_with_equal_names_keep_their_folders(trained, shapes_root, tmp_path):
    first = sorted((shapes_root / "shapes/JPEGImages").iterdir())[:2]
    for folder in ("a", "b"):
        for path in first:
            for part in (path, shapes_root / "shapes/Annotations" / f"{path.stem}.xml"):
                (tmp_path / folder / part.parent.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(part, tmp_path / folder / part.parent.name)
    state = load_checkpoint(trained)
    state.config["data"].update(root=str(tmp_path), train=[{"path": "a"}, {"path": "b"}])
    save_checkpoint(trained, state)
    assert main([str(trained), "--formats", "coco,voc"]) == 0
    names = {f"{folder}/JPEGImages/{path.name}" for folder in ("a", "b") for path in first}
    folder = tmp_path / "run/labels_train"
    assert {image["file_name"] for image in json.loads((folder / "coco.json").read_text())["images"]} == names
    assert all((folder / "Annotations" / name).with_suffix(".xml").is_file() for name in names)


def test_existing_files_are_not_overwritten(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ssd.diagnostics.label_check.evaluate_photos", None)  # it is told before that
    (tmp_path / "file").touch()
    assert main([str(trained), "--output", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err == f"error: --output {tmp_path / 'file'}: is a file; name a folder\n"
    (tmp_path / "set/Annotations").mkdir(parents=True)
    assert main([str(trained), "--output", str(tmp_path / "set"), "--formats", "voc"]) == 2
    assert f"{tmp_path / 'set'}: is not empty; choose another --output, or --overwrite" in capsys.readouterr().err
