"""Tiles end to end, with a network that detects bright spots: evaluation, Predictor and the command agree."""

import json

import cv2
import numpy as np
import pytest
import torch

from data.dataset.annotations import Annotations
from data.loading.dataset import DetectionDataset
from data.loading.sampler import EvalSampler
from data.transforms.tiles import cut_tiles
from scripts import detect
from ssd.boxes import encode, voc_to_edges
from ssd.config.schema import EvalConfig, PostprocessConfig, TilesConfig
from ssd.dbox import make_dbox_list
from ssd.evaluation.evaluate import Evaluation, EvaluationData, evaluate
from ssd.inference import predictor as deploy
from ssd.inference.predict import Detections, PixelModel
from ssd.inference.predictor import Predictor
from ssd.loss import MultiBoxLoss
from ssd.preprocessing import IMAGENET, normalize
from ssd.system.distributed import World
from ssd.weights.checkpoint import TrainState, load_checkpoint, save_checkpoint, weights_alone
from tests.helpers.annotations import blank

DBOXES = make_dbox_list()


def side(size: int, overlap: float = 0.2) -> TilesConfig:
    return TilesConfig(size=size, overlap=overlap)


CPU = torch.device("cpu")
CRITERION = MultiBoxLoss(min_neg=1)
TILES = TilesConfig(size=200, overlap=0.25, keep=0.6)
# Squares of 20 pixels: on edges of tiles, on a corner of four, at the photo's corner, and within a single tile.
SQUARES = {(500, 350): [(190, 40), (155, 145), (480, 330), (60, 60)], (200, 200): [(90, 20)], (150, 420): [(10, 190)]}


class Bright(torch.nn.Module):
    """Detects each bright spot wider than 4 of 300 pixels as an object of the only class."""

    dbox_list = DBOXES
    input_size = 300

    def forward(self, images):
        loc, conf = torch.zeros(len(images), len(DBOXES), 4), torch.zeros(len(images), len(DBOXES), 2)
        conf[..., 0] = 20
        for i, image in enumerate(images[:, 0] > 1):
            _, _, stats, _ = cv2.connectedComponentsWithStats(image.numpy().astype(np.uint8))
            for dbox, (x, y, width, height, _) in enumerate(stats[1:].tolist(), start=8000):
                if min(width, height) > 4:
                    box = torch.tensor([[x, y, x + width, y + height]]) / 300
                    loc[i, dbox] = encode(box, DBOXES[dbox : dbox + 1])[0]
                    conf[i, dbox] = torch.tensor([-20.0, 20.0])
        return loc, conf, DBOXES


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Annotations:
    folder = tmp_path_factory.mktemp("photos")
    boxes = []
    for i, ((width, height), corners) in enumerate(SQUARES.items()):
        image = np.zeros((height, width, 3), np.uint8)
        for x, y in corners:
            image[y : y + 20, x : x + 20] = 255
            boxes.append([x, y, x + 20, y + 20])
        cv2.imwrite(str(folder / f"{i}.png"), image)
    counts = [len(corners) for corners in SQUARES.values()]
    paths = np.array([str(folder / f"{i}.png").encode() for i in range(len(counts))])
    return Annotations(
        ("square",), paths, np.array(list(SQUARES), np.int32),
        np.cumsum([0, *counts]), np.array(boxes, np.float32), np.zeros(len(boxes), np.int64), np.zeros(len(boxes), bool),
        np.full(len(boxes), -1, np.int8), np.arange(len(counts)), *blank(len(counts)),
    )  # fmt: skip


def evaluated(photos: Annotations, tiles: TilesConfig | None) -> Evaluation:
    crops = cut_tiles(photos, tiles, seed=0)
    samples = DetectionDataset(photos, 300, (0, 0, 0), crops=crops)
    batches = [samples.__getitems__(keys) for keys in EvalSampler(crops.photos, 3)]
    ground_truth = [photos.ground_truth(i) for i in range(len(photos))]
    data = EvaluationData(batches, crops, photos.sizes, ground_truth, photos.classes)
    return evaluate(PixelModel(Bright(), IMAGENET, CPU, torch.float32), data, CRITERION, EvalConfig(metric="voc10"), World())


def predictor(tiles: TilesConfig | None) -> Predictor:
    return Predictor(Bright(), ["square"], IMAGENET, CPU, torch.float32, PostprocessConfig(), tiles)  # pyright: ignore


def test_objects_on_tile_edges_are_found_once(photos):
    evaluation = evaluated(photos, TILES)
    assert evaluation.mean_ap == 1
    assert len(evaluation.detections) == len(photos)
    for i, found in enumerate(evaluation.detections):
        assert len(found.scores) == len(photos.labels[photos.objects(i)])
        order = np.lexsort(found.boxes.T[:2])
        expected = voc_to_edges(photos.ground_truth(i)["boxes"])
        np.testing.assert_allclose(found.boxes[order], expected[np.lexsort(expected.T[:2])], atol=1.5)


def test_predictor_and_evaluation_agree(photos):
    evaluation = evaluated(photos, TILES)
    with_tiles = predictor(TILES)
    paths = [photos.path(i) for i in range(len(photos))]
    for found in (with_tiles(paths), with_tiles(paths, batch_size=2), [with_tiles(path)[0] for path in paths]):
        for entry, expected in zip(found, evaluation.detections, strict=True):
            np.testing.assert_allclose(entry.boxes, expected.boxes, atol=1e-3)
            np.testing.assert_allclose(entry.scores, expected.scores, atol=1e-6)
            assert entry.names == ["square"] * len(entry.boxes)


def test_the_loss_counts_the_tiles_of_training(photos):
    evaluations = []
    for share in (0.0, 1.0):
        options = TILES.model_copy(update={"background": share})
        evaluation = evaluated(photos, options)
        samples = DetectionDataset(photos, 300, (0, 0, 0), crops=cut_tiles(photos, options, 0).of_training())
        batch = samples.__getitems__([(0, index) for index in range(len(samples))])
        outputs = Bright()(normalize(batch.images, IMAGENET))
        loss_l, loss_c, num_positives = CRITERION.sums(outputs, batch.targets).sum(dim=0).tolist()
        assert (evaluation.loss_l, evaluation.loss_c) == pytest.approx((loss_l / num_positives, loss_c / num_positives))
        evaluations.append(evaluation)
    without, every = evaluations
    assert without.loss_c < every.loss_c  # by a square that an edge cuts in half: background, in a tile with nothing else
    for one, other in zip(without.detections, every.detections, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)


def test_a_large_photo_needs_no_additional_memory(monkeypatch):
    """100 megapixels: tiles are views, and a few at a time go through the network."""
    image = np.zeros((10_000, 10_000, 3), np.uint8)
    resized, batches = [], []

    def fitted(crop: np.ndarray, size: int) -> np.ndarray:
        resized.append((crop.base is image, crop.shape))
        return np.zeros((1, 1, 3), np.uint8)

    def predicted(_, images, *__):
        batches.append(len(images))
        return [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}] * len(images)

    monkeypatch.setattr(deploy, "to_input_size", fitted)
    monkeypatch.setattr(deploy, "predict", predicted)
    (found,) = predictor(TilesConfig(size=600, overlap=0.2)).detect([image], batch_size=32)
    assert isinstance(found, Detections)
    assert resized == [(True, image.shape), *[(True, (600, 600, 3))] * 21 * 21]
    assert batches == [32] * 13 + [26]


def test_many_boxes_of_many_tiles_are_merged_in_bounded_time(monkeypatch):
    """As early in training: the maximum number of detections in every tile."""
    rng = torch.Generator().manual_seed(0)

    def predicted(_, images, *__):
        low = torch.rand(len(images), 200, 2, generator=rng) * 0.9
        boxes = torch.cat([low, low + 0.1], dim=2)
        scores = torch.rand(len(images), 200, generator=rng).sort(dim=1, descending=True).values
        labels = torch.zeros(len(images), 200).long()
        return [{"boxes": b, "labels": k, "scores": s} for b, k, s in zip(boxes, labels, scores, strict=True)]

    monkeypatch.setattr(deploy, "to_input_size", lambda *_: np.zeros((1, 1, 3), np.uint8))
    monkeypatch.setattr(deploy, "predict", predicted)
    (found,) = predictor(TilesConfig(size=600, overlap=0.2)).detect([np.zeros((10_000, 10_000, 3), np.uint8)], batch_size=64)
    assert len(found.scores) == 200
    assert (np.diff(found.scores) <= 0).all()


@pytest.fixture(scope="module")
def trained(checkpoint, tmp_path_factory) -> dict[str, str]:
    """Checkpoints trained with and without tiles, and the weights alone of the former."""
    folder = tmp_path_factory.mktemp("trained")
    state = load_checkpoint(checkpoint)
    state.config = {**state.config, "data": {"tiles": {"size": 150, "overlap": 0.3, "keep": 0.5, "background": 0.1}}}
    save_checkpoint(folder / "tiles.pt", state)
    save_checkpoint(folder / "weights.pt", weights_alone(state))
    state.config = {**state.config, "data": {"tiles": None}}
    save_checkpoint(folder / "none.pt", state)
    return {"before": str(checkpoint), **{path.stem: str(path) for path in folder.iterdir()}}


@pytest.mark.parametrize(
    "name, wanted, expected",
    [
        ("before", "trained", None), ("none", "trained", None), ("tiles", "trained", side(150, 0.3)),
        ("weights", "trained", side(150, 0.3)), ("tiles", "none", None), ("tiles", 400, side(400, 0.3)),
        ("before", 400, side(400, 0.2)), ("tiles", side(50, 0.1), side(50, 0.1)),
    ],
)  # fmt: skip
def test_tiles_default_to_those_of_training(trained, name, wanted, expected):
    assert Predictor.from_checkpoint(trained[name], "cpu", tiles=wanted).tiles == expected


def test_invalid_tiles_are_refused(checkpoint):
    state: TrainState = load_checkpoint(checkpoint)
    for wrong in ("all", 0, 1.5):
        with pytest.raises(ValueError, match="tiles: expected 'trained', 'none', 32 to 65536 pixels or a TilesConfig"):
            Predictor.from_checkpoint(state, "cpu", tiles=wrong)  # pyright: ignore[reportArgumentType]


def test_the_command(trained, shapes_root, tmp_path, capsys):
    photo = str(sorted((shapes_root / "shapes/JPEGImages").iterdir())[0])

    def found(*options: str, name: str = "tiles") -> list[dict]:
        folder = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        arguments = [trained[name], photo, "--output", str(folder), "--no-pictures", "--score", "0.35", "--device", "cpu"]
        assert detect.main([*arguments, *options]) == 0
        (entry,) = json.loads((folder / "detections.json").read_text())
        return entry["objects"]

    assert found() != found("--tiles", "none")
    assert found("--tiles", "150") == found()
    assert found("--tiles", "none") == found(name="before") == found("--tiles", "1000")
    capsys.readouterr()
    for wrong in ("20", "all"):
        with pytest.raises(SystemExit, match=r"^2$"):
            detect.main([trained["tiles"], photo, "--tiles", wrong])
        assert f"argument --tiles: expected none or a whole number of at least 32, got '{wrong}'" in capsys.readouterr().err
