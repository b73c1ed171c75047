"""detect.py beside other programs, on a machine of two cores with a fake load: photos and videos on the free core."""

import cv2
import numpy as np
import pytest
import torch

from scripts import detect
from ssd.inference.predict import PixelModel
from ssd.system import threads
from ssd.system.machine import OtherLoad


@pytest.fixture
def used(monkeypatch):
    """The number of threads of each batch."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(threads, "num_cores", lambda: 2)
    monkeypatch.setattr(threads, "PERIOD", 0.0)
    numbers = []
    call = PixelModel.__call__

    def counted(*arguments):
        numbers.append(torch.get_num_threads())
        return call(*arguments)

    monkeypatch.setattr(PixelModel, "__call__", counted)
    yield numbers
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path):
    """Two photos, and a video of three frames."""
    (tmp_path / "in").mkdir()
    pixels = np.full((60, 80, 3), 90, np.uint8)
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / "in" / name), pixels)
    video = cv2.VideoWriter(str(tmp_path / "in/c.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (80, 60))
    for _ in range(3):
        video.write(pixels)
    video.release()
    return tmp_path


@pytest.mark.parametrize("load, number", [(1.0, 1), (0.1, 2)])
def test_photos_and_videos_take_the_free_cores(folder, used, load, number, monkeypatch):
    monkeypatch.setattr(OtherLoad, "cores", lambda self: load)
    words = ["slim", str(folder / "in"), "--output", str(folder / "out"), "--batch-size", "1", "--no-pictures"]
    assert detect.main([*words, "--device", "cpu"]) == 0
    assert used == [number] * 5
    assert torch.get_num_threads() == 2
