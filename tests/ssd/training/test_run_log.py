import json
import re
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG
from tensorboard.util.tensor_util import make_ndarray

from ssd.evaluation.voc_eval import voc_eval
from ssd.training import run_log
from ssd.training.run_log import THRESHOLDS, RecordFile, read_records
from ssd.training.schedule import Schedule
from tests.helpers.runs import events, run_of

A, B, FAR = [1, 1, 10, 10], [21, 21, 30, 30], [51, 51, 60, 60]


@pytest.fixture
def result():
    """Of class 0 three objects and four detections, of which 0.9 and 0.6 are right; of class 1 an object and nothing else."""
    scores = np.array([0.9, 0.8, 0.6, 0.6])
    detections = [{"boxes": np.array([A, FAR, B, FAR], float), "labels": np.zeros(4, int), "scores": scores}]
    objects = np.array([A, B, [71, 71, 80, 80], A], float)
    truth = [{"boxes": objects, "labels": np.array([0, 0, 0, 1]), "difficult": np.zeros(4, bool)}]
    return voc_eval(detections, truth, 2)


def test_recall_and_precision_at_a_score(result):
    recall, precision, counts = result.at(0, np.array([0.0, 0.6, 0.7, 0.85, 0.9, 0.95]))
    assert recall == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 3, 1 / 3, 0])
    assert precision == pytest.approx([1 / 2, 1 / 2, 1 / 2, 1, 1, 1])
    assert counts.tolist() == [4, 4, 2, 1, 1, 0]
    recall, precision, counts = result.at(1, np.array([0.0, 1.0]))
    assert (recall.tolist(), precision.tolist(), counts.tolist()) == ([0, 0], [1, 1], [0, 0])


def test_a_tensorboard_curve_has_the_counts(result, tmp_path):
    records = RecordFile(tmp_path)
    records.pr_curve("precision-recall/cat", 3, result.at(0, THRESHOLDS), 7)
    records.close()
    (event,) = events(tmp_path).Tensors("precision-recall/cat")
    assert event.step == 7
    curve = make_ndarray(event.tensor_proto)  # rows: true and false positives, true and false negatives, precision, recall
    assert curve.shape == (6, len(THRESHOLDS))
    at = np.searchsorted(THRESHOLDS, [0.3, 0.7, 0.85, 0.95])
    expected = [[2, 2, 0, 1, 1 / 2, 2 / 3], [1, 1, 0, 2, 1 / 2, 1 / 3], [1, 0, 0, 2, 1, 1 / 3], [0, 0, 0, 3, 1, 0]]
    np.testing.assert_allclose(curve[:, at].T, expected, rtol=1e-6)


def test_training_and_validation_loss_share_a_chart(tmp_path):
    records = RecordFile(tmp_path)
    losses = {"loss": 3.0, "loss_l": 1.0, "loss_c": 2.0}
    records.write("train", 1, 10, {**losses, "grad_norm": 7.0})
    records.write("eval", 1, 10, {"map": None, **losses, "ap": {}})
    records.close()
    board = events(tmp_path)
    assert board.Scalars("train/grad_norm")[0].value == 7
    (event,) = board.Tensors(CONFIG_SUMMARY_TAG)
    layout = Layout.FromString(make_ndarray(event.tensor_proto).item())
    # As TensorBoard finds the tags of a chart.
    charts = {
        chart.title: [tag for tag in board.Tags()["scalars"] if any(re.match(name, tag) for name in chart.multiline.tag)]
        for category in layout.category
        for chart in category.chart
    }
    assert charts == {name: [f"train/{name}", f"eval/{name}"] for name in losses}


def test_records_of_repeated_iterations_are_dropped(tmp_path):
    records = RecordFile(tmp_path)
    for iteration in (1, 2, 3):
        records.write("train", 1, iteration, {"loss": 1.0})
        records.write("eval", 1, iteration, {"map": 0.5, "ap": {"cat": None}})
    records.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "epo')  # killed while it wrote
    assert len(read_records(tmp_path)) == 6
    RecordFile(tmp_path, iteration=2, evaluated_at=1).close()
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(record["kind"], record["iteration"]) for record in kept] == [("train", 1), ("eval", 1), ("train", 2)]


def test_a_tensorboard_picture_keeps_its_content(tmp_path):
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, :30] = 250, 120, 10  # RGB
    records = RecordFile(tmp_path)
    records.picture("validation photos", image, 7)
    records.close()
    (event,) = events(tmp_path).Images("validation photos")
    assert (event.step, event.width, event.height) == (7, 60, 40)
    shown = cv2.imdecode(np.frombuffer(event.encoded_image_string, np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_allclose(shown[:, :24].astype(int), image[:, :24], atol=6)


def test_a_full_disk_costs_only_tensorboard_events(tmp_path, capfd):
    records = RecordFile(tmp_path)
    (written,) = (tmp_path / "tensorboard").iterdir()
    records.write("train", 1, 1, {"loss": 1.0})
    (tmp_path / "full").symlink_to("/dev/full")
    (tmp_path / "full").replace(written)
    for iteration in range(2, 100):
        records.write("train", 1, iteration, {"loss": 1.0})
    records.picture("validation photos", np.zeros((40, 60, 3), np.uint8), 100)
    records.close()
    (line,) = capfd.readouterr().err.splitlines()
    assert line == f"warning: {tmp_path / 'tensorboard'}: not written ([Errno 28] No space left on device)"
    assert len(read_records(tmp_path)) == 99
    (tmp_path / "another").mkdir()
    (tmp_path / "another/tensorboard").touch()
    RecordFile(tmp_path / "another").write("train", 1, 1, {"loss": 1.0})


@pytest.mark.parametrize("tiles, what", [(None, "photos"), ({"size": 50}, "photos and tiles")])
def test_describe(tiles, what, monkeypatch, capsys):
    source = [{"path": "shapes"}]
    run = run_of(
        data={"train": source, "val": source, "classes": ["cat", "dog"], "tiles": tiles},
        train={"batch_size": 4, "iterations": 9, "warmup": 9}, output_dir="out",
    )  # fmt: skip
    monkeypatch.setattr(run_log, "tiles_notes", lambda *_: ["of the tiles"])

    class Listed(list[int]):
        photos: "Listed"
        labels = range(20)

    samples, val_samples = Listed(range(24)), Listed(range(10))
    samples.photos, val_samples.photos = Listed(range(12)), Listed(range(5))
    schedule = Schedule(run.config.train, run.config.eval.every, len(samples))
    step = SimpleNamespace(model=torch.nn.Linear(999, 2))
    parts: Any = SimpleNamespace(train_set=samples, val_set=val_samples, step=step, schedule=schedule)
    run_log.describe(run, parts, 3)
    assert capsys.readouterr().out.splitlines() == [
        "data: 12 photos with 20 objects to train on, 5 to evaluate on",
        "of the tiles",
        "model: SSD300, 2,000 parameters, 2 classes and background",
        f"training: iterations 3 to 9 of 4 {what}, 1.5 epochs in total",
        "device: cpu, float32, 1 process(es); output: out",
        "warning: train.warmup 9 does not end before the last iteration, 9",
    ]
