"""The validation loss: that of training, over the whole data set, of the weights that are evaluated."""

import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch

from data.shapes import CLASSES
from ssd.config.file import load_config
from ssd.evaluation.evaluate import Evaluation
from ssd.model import SSD300
from ssd.preprocessing import normalize
from ssd.training.build import build_model
from ssd.training.datasets import eval_dataset, load_part
from ssd.training.run import Run
from ssd.training.validate import evaluate_photos
from ssd.weights.checkpoint import load_checkpoint
from tests.helpers import reference
from tests.helpers.runs import records, trained, write_config


@pytest.fixture(scope="module")
def odd_photos(shapes_root, tmp_path_factory) -> Path:
    """Four photos: one without objects, and one whose first object is difficult."""
    root = tmp_path_factory.mktemp("odd")
    shutil.copytree(shapes_root / "shapes", root / "shapes")
    split = root / "shapes/ImageSets/Main/val.txt"
    names = split.read_text().split()[:4]
    split.write_text("\n".join(names))
    paths = [root / f"shapes/Annotations/{name}.xml" for name in names]
    without, crowded = paths[1], max((paths[0], *paths[2:]), key=lambda path: path.read_text().count("<object>"))
    for path in (without, crowded):
        tree = ElementTree.parse(path)
        for i, entry in enumerate(tree.getroot().findall("object")):
            if path == without:
                tree.getroot().remove(entry)
            elif i == 0:
                entry.find("difficult").text = "1"  # pyright: ignore[reportOptionalMemberAccess]
        tree.write(path)
    return root


def written_targets(root: Path, keep_difficult: bool) -> list[np.ndarray]:
    """The objects of the validation photos as their files have them, `[G, 5]` each."""
    targets = []
    for name in (root / "shapes/ImageSets/Main/val.txt").read_text().split():
        annotation = ElementTree.parse(root / f"shapes/Annotations/{name}.xml").getroot()
        width, height = (float(annotation.findtext(f"size/{side}", "")) for side in ("width", "height"))
        rows = []
        for entry in annotation.findall("object"):
            x1, y1, x2, y2 = (float(entry.findtext(f"bndbox/{edge}", "")) for edge in ("xmin", "ymin", "xmax", "ymax"))
            if keep_difficult or entry.findtext("difficult") != "1":
                label = CLASSES.index(entry.findtext("name", ""))
                rows.append(((x1 - 1) / width, (y1 - 1) / height, x2 / width, y2 / height, label))
        targets.append(np.array(rows, float).reshape(-1, 5))
    return targets


def evaluated(config: Path, weights: dict[str, torch.Tensor] | None = None, **entries: object) -> tuple[Evaluation, SSD300]:
    run = Run.alone(load_config(config, [f"{name}={value}" for name, value in entries.items()]))
    model, preprocessing = build_model(run, None)
    if weights is not None:
        model.load_state_dict(weights)
    samples = eval_dataset(run, load_part(run, "val"), preprocessing)
    return evaluate_photos(run, samples, preprocessing, model), model


def expected_losses(config: Path, root: Path, model: SSD300) -> tuple[float, float]:
    """Plain numpy on all photos at once, with the objects that the files have."""
    options = load_config(config, [])
    run = Run.alone(options)
    _, preprocessing = build_model(run, None)
    images = eval_dataset(run, load_part(run, "val"), preprocessing).__getitems__([(0, i) for i in range(4)]).images
    with torch.no_grad():
        loc, conf, dboxes = (tensor.double().numpy() for tensor in model(normalize(images, preprocessing)))
    targets = written_targets(root, options.data.keep_difficult)
    assert [len(rows) == 0 for rows in targets] == [False, True, False, False]
    return reference.loss(loc, conf, dboxes, targets, min_neg=options.loss.min_neg)


def test_it_is_the_loss_of_the_whole_set_whatever_the_batches(tmp_path, odd_photos):
    config = write_config(tmp_path, odd_photos, data={"workers": 0})
    (one, model), (three, _), (again, _) = (evaluated(config, **{"eval.batch_size": size}) for size in (1, 3, 3))
    expected = expected_losses(config, odd_photos, model)
    assert (one.loss_l, one.loss_c) == pytest.approx(expected, rel=1e-5)
    assert (three.loss_l, three.loss_c) == pytest.approx((one.loss_l, one.loss_c), rel=1e-6)
    assert (again.loss_l, again.loss_c) == (three.loss_l, three.loss_c)


def test_difficult_objects_and_negatives_count_as_in_training(tmp_path, odd_photos):
    config = write_config(tmp_path, odd_photos, data={"workers": 0, "keep_difficult": False}, loss={"min_neg": 5})
    evaluation, model = evaluated(config)
    expected = expected_losses(config, odd_photos, model)
    assert (evaluation.loss_l, evaluation.loss_c) == pytest.approx(expected, rel=1e-5)
    with_difficult = evaluated(config, **{"data.keep_difficult": True})[0]
    assert with_difficult.loss_l != evaluation.loss_l
    assert with_difficult.result.num_objects == evaluation.result.num_objects  # they never count in mAP


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_it_is_of_the_averaged_weights(tmp_path, odd_photos, capsys):
    config = trained(tmp_path, odd_photos, eval={"every": 2}, train={"iterations": 2, "ema": 0.9})
    (record,) = records(tmp_path, "eval")
    state = load_checkpoint(tmp_path / "run/checkpoints/last.pt")
    averaged, own = (evaluated(config, weights)[0] for weights in (state.average, state.model))
    assert record["loss"] == averaged.loss
    assert record["loss"] != own.loss
    assert record["loss"] == pytest.approx(record["loss_l"] + record["loss_c"])
    assert f"validation loss {record['loss']:.3f} (l {record['loss_l']:.3f}, c " in capsys.readouterr().out
