"""Photos larger than twice the network's input: reduced while they are decoded, averaged, and the same everywhere."""

import hashlib
import io
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from data.dataset.annotations import Annotations
from data.loading.dataset import DetectionDataset
from data.transforms.augment import Crop, no_augmentation
from data.transforms.render import render
from data.transforms.tiles import cut_tiles
from ssd.config.schema import AugmentConfig, TilesConfig
from ssd.deploy import decode_heads, program
from ssd.deploy.export import export_onnx
from ssd.inference import predictor as inference
from ssd.inference.predictor import Predictor
from ssd.preprocessing import reduction, shrink, to_input_size
from ssd.system.images import ImageError, decode, read_photo, read_reduced
from ssd.weights.checkpoint import load_checkpoint
from tests.helpers.annotations import blank
from tests.helpers.paths import ROOT

FILL = (124, 116, 104)
SIZES = [(4000, 3000), (3001, 4003), (2400, 2400), (1280, 720), (640, 480), (10_000, 400), (1, 3000), (601, 599)]


def drawn(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Draw a photo with coarse and fine structure."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 196, (4, 5, 3)).astype(np.float32)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + rng.integers(-40, 41, (height, width, 1)), 0, 255).astype(np.uint8)


def as_jpeg(image: np.ndarray, quality: int = 95, **options) -> np.ndarray:
    content = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(content, "JPEG", quality=quality, **options)
    return np.frombuffer(content.getvalue(), np.uint8)


def box_filter(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Average a photo over the area of each new pixel, as floats."""

    def rows(image: np.ndarray, count: int) -> np.ndarray:
        sums = np.concatenate([np.zeros((1, *image.shape[1:])), image.cumsum(axis=0, dtype=np.float64)])
        edges = np.arange(count + 1) * len(image) / count
        whole = np.minimum(edges.astype(int), len(image) - 1)
        at = sums[whole] + (edges - whole)[:, None, None] * image[whole]
        return np.diff(at, axis=0) * count / len(image)

    return rows(rows(image, height).swapaxes(0, 1), width).swapaxes(0, 1)


def annotated(path, width: int, height: int, box=(0.3, 0.3, 0.6, 0.6)) -> Annotations:
    boxes = np.array([box], np.float32) * np.float32([width, height, width, height])
    return Annotations(
        ("cat",), np.array([str(path).encode()]), np.array([[width, height]], np.int32), np.array([0, 1]), boxes,
        np.zeros(1, np.int64), np.zeros(1, bool), np.zeros(1, np.int8), np.zeros(1, np.int64), *blank(1),
    )  # fmt: skip


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A JPEG of 12 megapixels."""
    path = tmp_path_factory.mktemp("large") / "a.jpg"
    path.write_bytes(as_jpeg(drawn(4000, 3000)).tobytes())
    return path


@pytest.mark.parametrize("size", SIZES)
def test_each_new_pixel_is_the_mean_of_those_it_replaces(size):
    width, height = size
    image = drawn(width, height)
    small = shrink(image, 300)
    for before, after in zip(image.shape[:2], small.shape[:2], strict=True):
        assert after == before if before <= 600 else 300 <= after <= 600
    np.testing.assert_allclose(small, box_filter(image, small.shape[1], small.shape[0]), atol=0.51)


def test_up_to_twice_the_input_nothing_is_averaged():
    assert [reduction(length, 300) for length in (1, 600, 601, 1200, 1201, 4000, 9600, 9601)] == [1, 1, 2, 2, 4, 8, 16, 32]
    image = drawn(600, 600)
    assert shrink(image, 300) is image


def test_fine_lines_become_grey():
    """Lines of one pixel, which interpolation alone turns into coarse ones or into black or white."""
    image = np.zeros((3000, 4000, 3), np.uint8)
    image[:, ::2] = 255
    alone = cv2.resize(image, (300, 300))
    assert np.ptp(alone) > 100 or abs(int(alone.mean()) - 128) > 50
    np.testing.assert_allclose(to_input_size(image, 300), 128, atol=1)
    out = np.zeros((300, 300, 3), np.uint8)
    render(image, no_augmentation(4000, 3000, np.zeros((0, 4))), FILL, out)
    np.testing.assert_allclose(out, 128, atol=1)
    np.testing.assert_allclose(decode_heads.resize(decode_heads.shrink(image, 300), 300), 128, atol=1)


@pytest.mark.parametrize("size", SIZES)
def test_raw_heads_average_in_the_same_way(size):
    width, height = size
    image = drawn(width, height)
    expected = to_input_size(image, 300).astype(int)
    difference = np.abs(decode_heads.resize(decode_heads.shrink(image, 300), 300) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3  # halves that rounding of floats decides


@pytest.mark.parametrize("kind", ["420", "444", "grey", "CMYK", "progressive"])
@pytest.mark.parametrize("size", [(4000, 3000), (2403, 3205), (1207, 1201)])
def test_a_reduced_jpeg_is_nearly_the_whole_one_averaged(kind, size):
    image = Image.fromarray(cv2.GaussianBlur(drawn(*size), (5, 5), 0))
    options = {"420": {"subsampling": 2}, "444": {"subsampling": 0}, "progressive": {"progressive": True}}.get(kind, {})
    encoded = as_jpeg(image.convert({"grey": "L", "CMYK": "CMYK"}.get(kind, "RGB")), **options)
    factor = reduction(min(size), 300)
    whole, reduced = decode(encoded, "a.jpg"), decode(encoded, "a.jpg", lambda *_: factor)
    assert whole.pixels.shape == (size[1], size[0], 3)
    assert (reduced.width, reduced.height) == size
    assert reduced.pixels.shape == (*((side + factor // 2) // factor for side in size[::-1]), 3)
    difference = np.abs(to_input_size(whole.pixels, 300).astype(int) - to_input_size(reduced.pixels, 300))
    assert difference.mean() < 1.5
    assert difference.max() < 24


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_jpeg_is_upright(orientation):
    """Of odd sizes, whose last blocks are not complete."""
    image = np.zeros((1999, 2501, 3), np.uint8)
    image[:900, :1700, 0] = 255
    image[-300:, :, 1] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = as_jpeg(image, exif=exif)
    whole, reduced = decode(encoded, "a.jpg"), decode(encoded, "a.jpg", lambda *_: 4)
    assert (reduced.width, reduced.height) == (whole.width, whole.height)
    difference = np.abs(to_input_size(whole.pixels, 300).astype(int) - to_input_size(reduced.pixels, 300))
    assert difference.mean() < 1
    x1, y1, x2, y2 = 100, 300, 1400, 1500
    part, exact = reduced.part(x1, y1, x2, y2), whole.part(x1, y1, x2, y2)
    assert part.shape == (300, 325, 3)
    assert np.abs(to_input_size(part, 300).astype(int) - to_input_size(exact, 300)).mean() < 1


def test_damage_is_found_at_a_reduced_scale(photo):
    encoded = np.fromfile(photo, np.uint8)
    for cut in (encoded[: len(encoded) // 2], encoded[:-3000]):
        with pytest.raises(ImageError, match=r"a\.jpg: is damaged or truncated"):
            decode(cut, "a.jpg", lambda *_: 8)


def test_other_formats_are_decoded_whole(tmp_path, photo):
    cv2.imwrite(str(tmp_path / "a.png"), read_photo(photo))
    found = read_reduced(tmp_path / "a.png", lambda *_: 8)
    assert found.pixels.shape == (3000, 4000, 3)


def test_training_decodes_what_the_crop_needs(photo, monkeypatch):
    """And evaluation what the whole photo needs; samples are nearly those of the photo decoded whole."""
    factors, samples = [], DetectionDataset(annotated(photo, 4000, 3000), 300, FILL, 1, AugmentConfig(photometric=False))
    decode_photo = DetectionDataset._decode

    def at_scale(self, photo, factor):
        factors.append(factor)
        return decode_photo(self, photo, factor)

    monkeypatch.setattr(DetectionDataset, "_decode", at_scale)
    keys = [(epoch, 0) for epoch in range(40)]
    reduced = samples.__getitems__(keys)
    for (epoch, index), factor in zip(keys, factors, strict=True):
        crop = samples._draw(epoch, index)[0].crop
        shown = min(min(crop.x2, 4000) - max(crop.x1, 0), min(crop.y2, 3000) - max(crop.y1, 0))
        assert shown / factor >= 300 or factor == 1
        assert shown / factor <= 600
    assert {2, 4, 8} <= set(factors)
    monkeypatch.setattr(DetectionDataset, "_decode", lambda self, photo, factor: decode_photo(self, photo, 1))
    whole = samples.__getitems__(keys)
    assert all(torch.equal(a, b) for a, b in zip(reduced.targets, whole.targets, strict=True))
    assert (reduced.images.float() - whole.images.float()).abs().mean() < 4
    again = DetectionDataset(annotated(photo, 4000, 3000), 300, FILL, 1, AugmentConfig(photometric=False))
    monkeypatch.setattr(DetectionDataset, "_decode", decode_photo)
    assert torch.equal(again.__getitems__(keys[7:9]).images, reduced.images[7:9])  # whatever was decoded before


@pytest.mark.parametrize("tiles", [None, TilesConfig(size=1300)])
def test_evaluation_and_predictor_see_the_same_pixels(photo, checkpoint, monkeypatch, tiles):
    photos = annotated(photo, 4000, 3000)
    samples = DetectionDataset(photos, 300, FILL, crops=cut_tiles(photos, tiles, 0) if tiles else None)
    expected = samples.__getitems__([(0, index) for index in range(len(samples))]).images
    predictor = Predictor.from_checkpoint(checkpoint, "cpu", "float32", tiles=tiles or "none")
    seen, predict = [], inference.predict

    def watched(model, images, options):
        seen.append(images)
        return predict(model, images, options)

    monkeypatch.setattr(inference, "predict", watched)
    (found,) = predictor(photo, batch_size=4)
    assert torch.equal(torch.cat(seen), expected)
    assert predictor.reduction(4000, 3000) == (4 if tiles else 8)
    (whole,) = predictor(read_photo(photo), batch_size=4)
    assert abs(len(found.labels) - len(whole.labels)) <= 0.1 * len(whole.labels) + 1


def test_a_narrow_crop_of_a_narrow_photo():
    out = np.zeros((300, 300, 3), np.uint8)
    for shape in ((3000, 1, 3), (1, 3000, 3)):
        render(np.full(shape, 77, np.uint8), no_augmentation(shape[1], shape[0], np.zeros((0, 4))), FILL, out)
        np.testing.assert_array_equal(out, 77)
    image = drawn(4000, 3000)
    render(image, no_augmentation(4000, 3000, np.zeros((0, 4)))._replace(crop=Crop(1000, 1000, 1010, 1300)), FILL, out)
    np.testing.assert_array_equal(out, cv2.resize(image[1000:1300, 1000:1010], (300, 300)))


def test_photos_of_voc_size_are_unchanged(tmp_path):
    """To the last bit: the digest is of samples before large photos were averaged. Only interpolations in integers are
    included, which are the same on every processor."""
    digest, drawn_so_far = hashlib.sha256(), 0
    for number, (width, height) in enumerate([(500, 375), (375, 500), (600, 600), (333, 500)]):
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8))
        photos = annotated(path, width, height)
        samples = DetectionDataset(photos, 300, FILL, 1, AugmentConfig(photometric=False))
        for epoch in range(100):
            augmentation, _ = samples._draw(epoch, 0)
            if augmentation.interpolation in (cv2.INTER_LINEAR, cv2.INTER_NEAREST):
                digest.update(samples[epoch, 0].images.numpy().tobytes())
                drawn_so_far += 1
        digest.update(DetectionDataset(photos, 300, FILL)[0, 0].images.numpy().tobytes())
    assert drawn_so_far > 120
    assert digest.hexdigest() == "186cf622cc684ee7ee61f9e055d83c76652ecd74f5d920a3cccd0c3280ebd46a"


def test_the_complete_file_finds_the_same(photo, checkpoint, tmp_path):
    """As the example runs it: the photo is averaged before."""
    state = load_checkpoint(checkpoint)
    predictor = Predictor.from_checkpoint(state, "cpu", "float32", score_thresh=0.35)
    export_onnx(tmp_path / "a.onnx", predictor.model, predictor.preprocessing, predictor.classes, predictor.options)
    image = read_photo(photo)
    count, boxes, scores = program.compare(program.load_program(tmp_path / "a.onnx")[0], predictor, [image])
    assert count > 3
    assert boxes < 0.5
    assert scores < 1e-3
    command = [sys.executable, str(ROOT / "scripts/run_onnx.py"), str(tmp_path / "a.onnx"), str(photo)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    (found,) = predictor.detect([image])
    assert len(shown) == len(found.labels)
    np.testing.assert_allclose([float(value) for value in shown[0].split()[-4:]], found.boxes[0], atol=1)
