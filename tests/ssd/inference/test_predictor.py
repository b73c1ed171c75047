import os
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from data.loading.dataset import DetectionDataset
from ssd.architecture import ARCHITECTURES
from ssd.config.schema import PostprocessConfig, TilesConfig
from ssd.inference.predict import predict
from ssd.inference.predictor import Predictor, for_inference, to_pixels
from ssd.model import SSD, SSD300
from ssd.preprocessing import IMAGENET, Preprocessing
from ssd.system.images import ImageError, read_photo
from ssd.weights.checkpoint import CheckpointError, load_checkpoint
from tests.helpers.annotations import load
from tests.helpers.detections import assert_alike
from tests.helpers.networks import narrow
from tests.helpers.paths import ROOT
from tests.helpers.processes import completed


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return Predictor.from_checkpoint(checkpoint, "cpu", "float32", score_thresh=0.35)


@pytest.fixture(scope="module")
def paths(shapes_root):
    return sorted((shapes_root / "shapes/JPEGImages").iterdir())[:5]


def test_all_types_of_photos_agree(predictor, paths):
    rgb = [read_photo(path) for path in paths]
    kinds = {
        "path": paths,
        "text": [str(path) for path in paths],
        "rgb": rgb,
        "pil": [Image.fromarray(image) for image in rgb],
        "bytes": [torch.from_numpy(image).permute(2, 0, 1) for image in rgb],
        "floats": [torch.from_numpy(image).permute(2, 0, 1) / 255 for image in rgb],
    }
    found = {name: predictor(photos) for name, photos in kinds.items()}
    found["bgr"] = predictor([cv2.cvtColor(image, cv2.COLOR_RGB2BGR) for image in rgb], bgr=True)
    found["in twos"] = predictor(paths, batch_size=2)
    found["alone"] = [predictor(path)[0] for path in paths]
    assert sum(len(entry.labels) for entry in found["path"]) > 5
    for entries in found.values():
        assert_alike(entries, found["path"])


def test_predictor_and_evaluation_agree(predictor, checkpoint, shapes_root):
    classes = load_checkpoint(checkpoint).classes
    photos = load(shapes_root / "shapes", "val", classes).photos
    preprocessing = Preprocessing.from_plain(load_checkpoint(checkpoint).preprocessing)
    samples = DetectionDataset(photos, 300, preprocessing.fill)
    batch = samples.__getitems__([(0, i) for i in range(len(photos))])
    options = PostprocessConfig(score_thresh=0.35)
    expected = predict(predictor.pixel_model, batch.images, options)
    for i, (entry, theirs) in enumerate(zip(predictor([photos.path(i) for i in range(len(photos))]), expected, strict=True)):
        np.testing.assert_allclose(entry.boxes, theirs["boxes"].numpy() * np.tile(photos.sizes[i], 2), atol=1e-3)
        np.testing.assert_array_equal(entry.labels, theirs["labels"].numpy())
        assert entry.names == [classes[label] for label in entry.labels]


def test_photos_are_rotated_upright(tmp_path):
    image = Image.fromarray(np.arange(6 * 9 * 3, dtype=np.uint8).reshape(6, 9, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        np.testing.assert_array_equal(to_pixels(opened), np.rot90(np.asarray(image), -1))
    np.testing.assert_array_equal(to_pixels(tmp_path / "turned.png"), np.rot90(np.asarray(image), -1))


def test_pil_images_of_every_depth():
    grey = np.arange(54, dtype=np.uint16).reshape(6, 9) * 1000
    assert to_pixels(Image.fromarray(grey)).tolist() == np.repeat((grey >> 8)[..., None], 3, axis=2).tolist()
    with pytest.raises(
        ImageError, match="image 3: pixels are floating-point numbers without a known range; save it with 8 or 16 bits"
    ):
        to_pixels(Image.fromarray(grey.astype(np.float32)), 3)


@pytest.mark.parametrize(
    "photo, message",
    [
        ("missing.jpg", "missing.jpg: cannot be read: No such file"),
        (np.zeros((4, 4, 3)), "image 0: expected an array .* got .* of float64"),
        (np.zeros((4, 4, 2), np.uint8), "expected an array"),
        (np.zeros((0, 4, 3), np.uint8), "expected an array"),
        (torch.zeros(4, 4, 3), r"expected a tensor \[3, H, W\], got \[4, 4, 3\]"),
        (torch.full((3, 4, 4), 255.0), "expected floats in 0..1, got 255 to 255"),
        (torch.full((3, 4, 4), 1.5), "expected floats in 0..1, got 1.5 to 1.5"),
        (torch.full((3, 4, 4), -0.5), "expected floats in 0..1, got -0.5 to -0.5"),
        (np.zeros((4, 4, 3), np.uint16), "expected an array .* got .* of uint16"),
        (torch.zeros(3, 0, 4), "expected an array"),
        (Image.new("RGB", (0, 4)), "image 0: has no pixels"),
        (None, "image 0: expected a path, an array, a PIL image or a tensor, got NoneType"),
        (7, "image 0: expected a path, .* got int"),
    ],
)
def test_an_invalid_photo_is_refused(predictor, photo, message):
    for take in (predictor, to_pixels):
        with pytest.raises(ImageError, match=message):
            take(photo)


def test_a_truncated_pil_image_is_refused(predictor, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with Image.open(tmp_path / "a.png") as photo, pytest.raises(ImageError, match="image 0: cannot be decoded"):
        predictor(photo)


def test_other_files_are_refused(tmp_path):
    for name, content in (("empty.jpg", b""), ("text.jpg", b"hello")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=f"{name}: is not a"):
            read_photo(tmp_path / name)


def test_grey_photos_and_an_empty_list(predictor):
    assert to_pixels(np.full((4, 5), 7, np.uint8)).tolist() == np.full((4, 5, 3), 7).tolist()
    assert predictor([]) == []
    assert len(predictor(np.zeros((1, 1, 3), np.uint8))) == 1


def test_photos_from_a_generator_and_arrays_of_every_layout(predictor, paths):
    rgb = [read_photo(path) for path in paths]
    expected = predictor(rgb)
    assert_alike(predictor(path for path in paths), expected)
    assert_alike(predictor(np.stack(rgb[:1])), expected[:1])
    assert_alike(predictor([np.dstack([image, image[..., :1]]) for image in rgb]), expected)
    assert_alike(predictor([np.asfortranarray(image[..., ::-1]) for image in rgb], bgr=True), expected)
    assert_alike(predictor([image[::-1].copy()[::-1] for image in rgb]), expected)
    grey = [image[:, ::-1, 1] for image in rgb]
    assert_alike(predictor([image[..., None] for image in grey]), predictor(grey))
    exact = [torch.from_numpy(image // 8 * 8).permute(2, 0, 1) for image in rgb]
    half = [(image.float() / 255).half() for image in exact]
    assert all((to_pixels(one) == to_pixels(other)).all() for one, other in zip(half, exact, strict=True))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"score_thresh": 1.5}, "score_thresh: expected a number from 0 to 1, got 1.5"),
        ({"score_thresh": float("nan")}, "score_thresh: expected a number from 0 to 1, got nan"),
        ({"nms_thresh": -0.1}, "nms_thresh: expected a number from 0 to 1"),
        ({"nms_thresh": "0.5"}, "nms_thresh: expected a number from 0 to 1, got '0.5'"),
        ({"top_k": 0}, "top_k: expected an integer ≥ 1, got 0"),
        ({"top_k": 2.5}, "top_k: expected an integer ≥ 1"),
        ({"device": "gpu"}, "device: expected .* got 'gpu'"),
        ({"device": 99}, "device: cuda:99: PyTorch finds"),
        ({"precision": "int8"}, "precision: expected auto, float32, bfloat16, float16, got 'int8'"),
        ({"tiles": 1}, "tiles: expected"),
        ({"tiles": 70_000}, "tiles: expected 'trained', 'none', 32 to 65536 pixels or a TilesConfig, got 70000"),
        ({"device": np.int64(99)}, "device: cuda:99: PyTorch finds"),
    ],
)
def test_arguments_have_bounds(checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        Predictor.from_checkpoint(checkpoint, **{"device": "cpu", **options})


def test_tile_size_may_be_a_numpy_integer(checkpoint):
    assert Predictor.from_checkpoint(checkpoint, "cpu", tiles=np.int64(400)).tiles == TilesConfig(size=400)


def test_torch_device_and_batch_size_bounds(checkpoint, predictor):
    assert Predictor.from_checkpoint(checkpoint, torch.device("cpu")).device == torch.device("cpu")
    for size in (0, -1, 1.5):
        with pytest.raises(ValueError, match="batch_size: expected an integer ≥ 1"):
            predictor([], batch_size=size)


FORKED = """
import multiprocessing, sys
import numpy as np, torch
from ssd.inference.predictor import Predictor

torch.set_num_threads(4)
predictor = Predictor.from_checkpoint(sys.argv[1], "cpu", "float32", score_thresh=0.35)
photos = [np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)] * 4
expected = predictor(photos)
with multiprocessing.get_context("fork").Pool(1) as pool:
    (found,) = pool.map(predictor, [photos])
for ours, theirs in zip(expected, found, strict=True):
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_each_class_has_a_threshold_of_its_own(checkpoint, paths):
    state = load_checkpoint(checkpoint)
    found = Predictor.from_checkpoint(state, "cpu", score_thresh=0.05)(paths)
    scores = {name: 0.1 * number for number, name in enumerate(state.classes, start=1)}
    state.class_scores = scores
    chosen = Predictor.from_checkpoint(state, "cpu", score_thresh="auto")(paths)
    kept = [[score >= scores[name] for score, name in zip(each.scores, each.names, strict=True)] for each in found]
    assert any(map(all, kept)) or any(map(any, kept))
    assert not all(map(all, kept))
    for before, mask, after in zip(found, kept, chosen, strict=True):
        assert after.scores.tolist() == before.scores[mask].tolist()
        assert after.names == [name for name, is_kept in zip(before.names, mask, strict=True) if is_kept]
        assert np.array_equal(after.boxes, before.boxes[mask])
    state.class_scores = {}
    with pytest.raises(CheckpointError, match="has no thresholds for --score auto; give a number"):
        Predictor.from_checkpoint(state, "cpu", score_thresh="auto")


def test_a_predictor_works_after_a_fork(checkpoint):
    """The child used to wait forever for threads that only the parent has."""
    done = completed([sys.executable, "-c", FORKED, str(checkpoint)], timeout=60, cwd=ROOT)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize(
    "batch_norm, name", [("none", "ssd300"), ("backbone", "ssd300"), *(("all", name) for name in ARCHITECTURES)]
)
def test_for_inference_preserves_outputs(batch_norm, name):
    torch.manual_seed(0)
    row = ARCHITECTURES[name]
    model = SSD(4, batch_norm=batch_norm, width=narrow(row), architecture=row).eval()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(norm.bias)
            torch.nn.init.uniform_(norm.weight, 0.5, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(2, 3, model.input_size, model.input_size)
    network = for_inference(model, torch.float32)
    assert not [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for expected, found in zip(model(images), network(images), strict=True):
            scale = expected.abs().max().item()
            torch.testing.assert_close(found, expected, rtol=0, atol=(2e-6 if name == "ssd300" else 1e-5) * scale)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(model.state_dict()) == len(before)


def test_bfloat16_weights_equal_those_of_autocast():
    torch.manual_seed(0)
    model = SSD300(4, width=0.05).eval()
    network = for_inference(model, torch.bfloat16)
    assert network.backbone.conv1_1.conv.weight.dtype == torch.bfloat16
    assert network.dbox_list.dtype == torch.float32
    images = torch.randn(1, 3, 300, 300).to(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for expected, found in zip(model.to(memory_format=torch.channels_last)(images), network(images), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_large_photos_fill_a_batch_early(predictor):
    large = np.broadcast_to(np.uint8(0), (8_000, 12_000, 3))  # 96 megapixels
    assert not predictor.fills([large], 16)
    assert predictor.fills([large, large], 16)
    assert not predictor.fills([large[:300, :300]] * 15, 16)
    assert predictor.fills([large[:300, :300]] * 16, 16)


def test_the_given_network_is_not_changed(checkpoint):
    model = SSD300(4, width=0.05, batch_norm="backbone").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predictor = Predictor(model, "abc", IMAGENET, torch.device("cpu"), torch.bfloat16, PostprocessConfig())
    predictor(np.zeros((40, 50, 3), np.uint8))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
