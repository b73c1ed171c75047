import math
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from ssd.batch import Batch, Crops, pad_targets
from ssd.boxes import encode
from ssd.config.schema import EvalConfig, PostprocessConfig
from ssd.dbox import make_dbox_list
from ssd.evaluation.error_kinds import KINDS
from ssd.evaluation.evaluate import EvaluationData, evaluate
from ssd.inference.predict import PixelModel, predict
from ssd.loss import MultiBoxLoss
from ssd.preprocessing import IMAGENET
from ssd.system.distributed import World
from ssd.system.stop import Stopped, StopRequest

DBOXES = make_dbox_list()
BOX = torch.tensor([[0.25, 0.2, 0.75, 0.6]])


class Oracle(torch.nn.Module):
    """Predicts one object of class 1 at BOX in every image, with certainty."""

    def forward(self, images):
        count = len(images)
        dbox = 8700
        loc = torch.zeros(count, len(DBOXES), 4)
        loc[:, dbox] = encode(BOX, DBOXES[dbox : dbox + 1])
        conf = torch.zeros(count, len(DBOXES), 3)
        conf[..., 0] = 20
        conf[:, dbox] = torch.tensor([-20.0, -20.0, 20.0])
        return loc, conf, DBOXES


def run(stop=None):
    # 200 × 100 pixels: BOX is 51..150 × 21..60, counted from 1, both ends included.
    truth = {"boxes": np.array([[51, 21, 150, 60]], float), "labels": np.array([1]), "difficult": np.array([False])}
    images = torch.zeros(2, 300, 300, 3, dtype=torch.uint8)
    batches = [Batch(images, pad_targets([torch.zeros(0, 5)] * 2), torch.tensor(part)) for part in ([1, 0], [2, 3])]
    sizes = np.array([[200, 100]] * 4)
    whole = Crops(np.arange(4), np.array([[0, 0, 200, 100]] * 4), np.ones(4, bool))
    model = PixelModel(Oracle(), IMAGENET, torch.device("cpu"), torch.float32)
    data = EvaluationData(batches, whole, sizes, [truth] * 4, ["cat", "dog"])
    return evaluate(model, data, MultiBoxLoss(min_neg=1), EvalConfig(metric="voc10"), World(), stop)


def test_detections_are_in_photo_pixels():
    evaluation = run()
    assert len(evaluation.detections) == 4
    for found in evaluation.detections:
        np.testing.assert_allclose(found.boxes, [[50, 20, 150, 60]], atol=1e-2)
        assert found.labels.tolist() == [1]
    assert evaluation.result.ap[1] == 1
    assert math.isnan(evaluation.result.ap[0])
    assert evaluation.summary == "mAP@0.5 (VOC10 area) 1.0000"
    # The targets are empty, so the certain DBox is the hardest negative of each photo: its object against its background.
    assert (evaluation.loss_l, evaluation.loss_c) == (0, pytest.approx(4 * 40))
    losses = {"loss": evaluation.loss, "loss_l": 0.0, "loss_c": evaluation.loss_c}
    values = {"map": 1.0, **losses, "ap": {"cat": None, "dog": 1.0}, "errors": dict.fromkeys(KINDS, 0.0)}
    assert evaluation.record() == {"metric": "VOC10 area", **values}
    assert "validation loss 160.000 (l 0.000, c 160.000)" in evaluation.table()
    assert replace(evaluation, loss_l=math.inf).record()["loss"] is None  # JSON knows no infinity
    assert "not in the mean, since they have no objects here: cat" in evaluation.table()
    assert "4 photos" in evaluation.table()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_network_computes_in_the_requested_precision(dtype):
    layer, dtypes = torch.nn.Conv2d(3, 4, 1), []

    def network(images):
        dtypes.append(layer(images).dtype)
        return Oracle()(images)

    model = PixelModel(network, IMAGENET, torch.device("cpu"), dtype)
    predict(model, torch.zeros(2, 8, 8, 3, dtype=torch.uint8), PostprocessConfig())
    assert dtypes == [dtype]


def test_evaluation_stops_on_request():
    stop = StopRequest()
    stop.signal = signal.SIGTERM
    with pytest.raises(Stopped, match="SIGTERM"):
        run(stop)
