"""Videos and cameras: round trips, and frame counts and rates that the library reports wrongly."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from ssd.deploy import video
from ssd.deploy.video import MAX_LOST, Video, VideoFile, writable_rate
from ssd.system.errors import Failure, UsageError
from ssd.system.images import ImageError

RED = np.full((48, 64, 3), (255, 0, 0), np.uint8)


def written(path: Path, *frames: np.ndarray) -> Path:
    with VideoFile(path, 12.5, 64, 48) as file:
        for frame in frames:
            file.write(frame)
    return path


def test_round_trip(tmp_path):
    path = tmp_path / "far/below/a.mp4"
    for _ in range(2):  # the second in the place of the first
        written(path, RED, np.zeros_like(RED), np.full((96, 64, 3), (0, 0, 255), np.uint8))
    with Video(str(path)) as frames:
        assert (frames.is_camera, frames.rate, frames.total) == (False, 12.5, 3)
        numbers, images = zip(*frames, strict=True)
    assert numbers == (0, 1, 2)
    assert [image.shape for image in images] == [(48, 64, 3)] * 3
    colours = [image.mean(axis=(0, 1)) for image in images]
    np.testing.assert_allclose(colours, [(255, 0, 0), (0, 0, 0), (0, 0, 255)], atol=8)
    assert [each.name for each in path.parent.iterdir()] == ["a.mp4"]


def test_an_empty_or_removed_video_leaves_no_file(tmp_path):
    written(tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())

    def removed() -> None:
        with VideoFile(tmp_path / "a.mp4", 5, 64, 48) as file:
            file.write(RED)
            file.aside.unlink()

    with pytest.raises(Failure, match="the video was incomplete"):
        removed()
    assert not list(tmp_path.iterdir())


class Capture:
    """A stand-in for OpenCV's capture: decodable and undecodable frames, and reported properties."""

    says: float = 0.0  # how many there are
    decodable = ""  # a letter a frame: x is lost

    def __init__(self, source: object) -> None:
        self.left = iter(self.decodable)

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def release(self) -> None: ...

    def get(self, what: int) -> float:
        return self.says if what == cv2.CAP_PROP_FRAME_COUNT else 25.0

    def read(self) -> tuple[bool, np.ndarray | None]:
        is_read = next(self.left, "x") != "x"
        return is_read, RED if is_read else None


@pytest.fixture
def capture(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    return monkeypatch


@pytest.mark.parametrize("says, total", [(7.0, 7), (0.0, None), (-9e15, None), (math.nan, None), (math.inf, None)])
def test_an_impossible_frame_count_is_ignored(capture, says, total):
    capture.setattr(Capture, "says", says)
    assert Video("a.mp4").total == total
    assert Video("camera:0").total is None


@pytest.mark.parametrize(
    "decodable, numbers, num_lost",
    [
        ("oxo", [0, 2], 1), ("xxoo", [2, 3], 2), ("ooxx", [0, 1], 0), ("oxoxxo", [0, 2, 5], 3), ("", [], 0),
        ("x" * (MAX_LOST - 1) + "o", [MAX_LOST - 1], MAX_LOST - 1), ("x" * MAX_LOST + "o", [], 0),
    ],
)  # fmt: skip
def test_lost_frames_are_counted_except_at_the_end(capture, decodable, numbers, num_lost):
    capture.setattr(Capture, "decodable", decodable)
    frames = Video("a.mp4")
    assert [number for number, _ in frames] == numbers
    assert frames.num_lost == num_lost


def test_a_camera_ends_at_the_first_missing_frame(capture):
    capture.setattr(Capture, "decodable", "ooxo")
    frames = Video("camera:0")
    assert [number for number, _ in frames] == [0, 1]


@pytest.mark.parametrize(
    "rate, near",
    [
        (29.97, 29.97), (29.97003, 29.97), (65.535, 65.535), (65.536, 65.54), (655.357, 655.4), (65_535.0, 65_535),
        (65_535.6, 0), (1e-4, 0), (0, 0), (-5.0, 0), (math.nan, 0), (math.inf, 0),
    ],
)  # fmt: skip
def test_rates_fit_the_clock_of_mpeg_4(rate, near):
    assert writable_rate(rate) == near


def test_a_camera_needs_a_number():
    assert [video._camera_number(f"camera:{number}") for number in ("0", "12", "9999")] == [0, 12, 9999]
    for wrong in ("", "front", "-1", "1.5", "10000"):
        with pytest.raises(UsageError, match="expected a number, such as camera:0"):
            Video(f"camera:{wrong}")


def test_unreadable_and_unwritable_videos_are_named(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(ImageError, match=r"a\.mp4: cannot be opened as a video"):
        Video(str(tmp_path / "a.mp4"))
    with pytest.raises(ImageError, match="cannot write a video of 64 × 48 pixels, 70000 frames/s"):
        VideoFile(tmp_path / "b.mp4", 70_000, 64, 48)
