"""The page of NumPy beside a raw network file does what this project does."""

import ast
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ssd.dbox import make_dbox_list
from ssd.deploy import decode_heads
from ssd.detect import detect
from ssd.preprocessing import CAFFE, Preprocessing, normalize
from ssd.preprocessing import resize as resize_by_opencv

DBOXES = make_dbox_list()[::7]
CLASSES = ["cat", "dog", "red kite"]


def settings_for(kind="logits", classes=tuple(CLASSES), top_k=200, score=0.01, **scores):
    return {
        "outputs": {"conf": {"kind": kind}},
        "classes": list(classes),
        "variances": [0.1, 0.2],
        "postprocess": {
            "score_thresh": {name: scores.get(name, score) for name in classes},
            "nms_thresh": 0.45, "top_k": top_k, "pre_nms_top_k": 400,
        },
        "dboxes": DBOXES.numpy(),
    }  # fmt: skip


def random_heads(seed, num_classes=3, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn(2, len(DBOXES), 4, generator=generator) * 2
    conf = torch.randn(2, len(DBOXES), num_classes + 1, generator=generator) * spread
    return loc, conf


def assert_same(ours, theirs, size):
    """Compare a dict of `detect` with the result of `decode_heads.decode`."""
    boxes, labels, scores = theirs
    np.testing.assert_array_equal(labels, ours["labels"])
    np.testing.assert_allclose(scores, ours["scores"], atol=1e-6)
    np.testing.assert_allclose(boxes, ours["boxes"].numpy() * np.array(size * 2, np.float32), atol=1e-3)
    assert boxes.dtype == scores.dtype == np.float32


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("top_k, score", [(200, 0.01), (7, 0.01), (5000, 0.3), (200, 0.9999)])
def test_decodes_random_heads_as_detect_does(seed, top_k, score):
    loc, conf = random_heads(seed)
    found = detect(loc, conf, DBOXES, score_thresh=score, top_k=top_k)
    for kind, output in (("logits", conf), ("scores", conf.softmax(dim=2))):
        settings = settings_for(kind, top_k=top_k, score=score)
        for i, ours in enumerate(found):
            assert_same(ours, decode_heads.decode(loc[i].numpy(), output[i].numpy(), (120, 300, 3), settings), (300, 120))
    assert score == 0.9999 or all(len(each["labels"]) > 5 for each in found)


def test_many_classes_and_equal_boxes():
    loc, conf = random_heads(0, num_classes=20, spread=4)
    loc[:, 100:200] = loc[:, :1]
    names = [f"class {i}" for i in range(20)]
    for i, ours in enumerate(detect(loc, conf, DBOXES)):
        assert_same(ours, decode_heads.decode(loc[i].numpy(), conf[i].numpy(), (50, 50), settings_for(classes=names)), (50, 50))


def test_broken_outputs_give_no_detection():
    loc, conf = random_heads(1)
    loc[:, ::3, 1] = torch.inf
    loc[:, 1::3, 3] = torch.nan
    conf[:, 2::6, 2] = torch.nan
    loc[:, 5, 2:] = 1e4  # a huge box is clipped
    conf[:, 5] = torch.tensor([0.0, 9.0, 0.0, 0.0])
    for i, ours in enumerate(detect(loc, conf, DBOXES)):
        assert len(ours["labels"]) > 5
        assert_same(ours, decode_heads.decode(loc[i].numpy(), conf[i].numpy(), (10, 10), settings_for()), (10, 10))


def test_each_class_has_its_threshold_after_suppression():
    """As in `Predictor`: the smallest threshold decides what is examined, and `top_k` counts before the others apply."""
    loc, conf = random_heads(2)
    (ours, _) = detect(loc, conf, DBOXES, score_thresh=0.2, top_k=20)
    middle = float(ours["scores"].median())
    kept = ours["scores"] >= torch.tensor([0.2, middle, middle])[ours["labels"]]
    assert 0 < kept.sum() < len(kept)
    settings = settings_for(cat=0.2, top_k=20, score=middle)
    result = decode_heads.decode(loc[0].numpy(), conf[0].numpy(), (10, 10), settings)
    assert_same({name: values[kept] for name, values in ours.items()}, result, (10, 10))


def test_nothing_found():
    loc, conf = np.zeros((len(DBOXES), 4), np.float32), np.zeros((len(DBOXES), 4), np.float32)
    boxes, labels, scores = decode_heads.decode(loc, conf, (10, 10), settings_for(score=0.5))
    assert (boxes.shape, labels.shape, scores.shape) == ((0, 4), (0,), (0,))


@pytest.mark.parametrize("height, width", [(300, 300), (241, 517), (600, 600), (1200, 900), (40, 30), (1, 1), (3000, 2)])
def test_resize_equals_opencv(height, width):
    rng = np.random.default_rng(0)
    for photo in (rng.integers(0, 256, (height, width, 3)), rng.choice([0, 255], (height, width, 3))):
        pixels = photo.astype(np.uint8)
        np.testing.assert_array_equal(decode_heads.resize(pixels, 300), cv2.resize(pixels, (300, 300)))


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("dtype, before", [("float32", True), ("float32", False), ("uint8", False)])
def test_the_input_is_prepared_as_in_training(order, dtype, before):
    step = 1 if order == "rgb" else -1
    preprocessing = Preprocessing(CAFFE.mean, (0.5, 0.25, 2.0), order)
    entry = {
        "shape": [3, 3, 64, 64], "dtype": dtype, "channel_order": order, "normalise_before": before,
        "mean": CAFFE.mean[::step], "scale": preprocessing.scale[::step],
    }  # fmt: skip
    photos = [np.random.default_rng(i).integers(0, 256, (50 + i, 90, 3)).astype(np.uint8) for i in range(2)]
    images = decode_heads.prepare(photos, {"input": entry})
    assert images.dtype == dtype
    assert images.shape == (3, 3, 64, 64)
    assert not images[2].any()
    if not before:
        images = (images - np.float32(entry["mean"])[:, None, None]) * np.float32(entry["scale"])[:, None, None]
    resized = torch.from_numpy(np.stack([resize_by_opencv(photo, 64, 64) for photo in photos]))
    np.testing.assert_array_equal(images[:2], normalize(resized, preprocessing).numpy())
    with pytest.raises(ValueError, match="expected at most 3 photos, the batch of the file, got 4"):
        decode_heads.prepare(photos * 2, {"input": entry})


def test_it_needs_numpy_alone(tmp_path):
    tree = ast.parse(Path(decode_heads.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imports] == ["import json", "from typing import Any", "import numpy as np"]
    (tmp_path / "a.json").write_text(json.dumps({"dboxes": [[0.1, 0.2, 0.3, 0.4]], "classes": ["鳥"]}), "utf-8")
    settings = decode_heads.load(str(tmp_path / "a.json"))
    assert settings["classes"] == ["鳥"]
    assert settings["dboxes"].dtype == np.float32
