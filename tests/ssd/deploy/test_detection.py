"""Detection in videos, with stand-ins for frames and network: batches, messages and interruption."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from tqdm import tqdm

from ssd.deploy import detection
from ssd.deploy.detection import Job, output_folder
from ssd.deploy.inputs import Input
from ssd.deploy.results import Results
from ssd.inference.predict import Detections
from ssd.system.errors import UsageError

NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32), [])


@dataclass
class Frames:
    """A stand-in for a video or a camera."""

    source: str = "a.mp4"
    count: int = 10  # decodable frames
    total: int | None = None  # reported by the file
    num_lost: int = 0
    rate: float = 12.5
    is_interrupted: bool = False  # after the last frame

    @property
    def is_camera(self) -> bool:
        return self.source.startswith("camera:")

    def __enter__(self) -> "Frames":
        return self

    def __exit__(self, *_: object) -> None: ...

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        yield from ((number, np.zeros((8 + number % 2, 6, 3), np.uint8)) for number in range(self.count))
        if self.is_interrupted:
            raise KeyboardInterrupt


class Recorder:
    """A stand-in for a predictor and for a format of results."""

    classes = ("cat",)

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.entries: list[Any] = []

    def detect(self, images: tuple[np.ndarray, ...], _: int) -> list[Detections]:
        self.batches.append(len(images))
        return [NOTHING] * len(images)

    def add(self, entries: list[Any]) -> None:
        self.entries += entries


def detect_in(
    frames: Frames, monkeypatch: Any, tmp_path: Any, most: int | None = None, pictures: bool = False
) -> tuple[Job, Recorder]:
    recorder = Recorder()
    results = Results(tmp_path, [], ["cat"])
    results.formats = [recorder]
    monkeypatch.setattr(detection, "Video", lambda _: frames)
    job = Job(recorder, results, tmp_path, 4, most, pictures)  # pyright: ignore[reportArgumentType]
    job.detect_video(Input("name", frames.source))
    return job, recorder


@pytest.mark.parametrize(
    "frames, most, batches, said",
    [
        (Frames(), None, [4, 4, 2], ""),
        (Frames(), 5, [4, 1], ""),
        (Frames(total=100), 5, [4, 1], ""),
        (Frames(total=8), 20, [4, 4, 2], ""),
        (Frames("camera:0", 3), None, [1, 1, 1], ""),
        (Frames(count=9, total=10), None, [4, 4, 1], ""),  # the file's frame count is an estimate
        (Frames(count=8, total=10), None, [4, 4], "a.mp4: 8 of about 10 frames could be decoded"),
        (Frames(count=3, total=50), 5, [3], "a.mp4: 3 of about 5 frames could be decoded"),
        (Frames(num_lost=2), None, [4, 4, 2], "a.mp4: 2 frames could not be decoded; 10 others could"),
        (Frames(count=0), None, [], "a.mp4: no frame could be decoded"),
    ],
)
def test_frames_are_batched_and_missing_frames_reported(frames, most, batches, said, monkeypatch, tmp_path, capsys):
    job, recorder = detect_in(frames, monkeypatch, tmp_path, most)
    assert recorder.batches == batches
    assert [(entry.name, entry.frame) for entry in recorder.entries] == [("name", number) for number in range(sum(batches))]
    assert all((entry.width, entry.height) == (6, 8 + entry.frame % 2) for entry in recorder.entries)
    assert job.num_faults == bool(said)
    assert [line for line in capsys.readouterr().err.splitlines() if "error" in line] == [f"error: {said}"] * bool(said)


@pytest.mark.parametrize("total, most, expected", [(None, None, None), (8, None, 8), (8, 5, 5), (8, 20, 8), (None, 5, 5)])
def test_the_progress_bar_ends_at_the_last_frame(total, most, expected, monkeypatch, tmp_path):
    totals = []

    class Bar(tqdm):
        def __init__(self, **options: Any) -> None:
            totals.append(options["total"])
            super().__init__(**options)

    monkeypatch.setattr(detection, "tqdm", Bar)
    detect_in(Frames(total=total), monkeypatch, tmp_path, most)
    assert totals == [expected]


def test_all_frames_are_written_at_the_size_of_the_first(monkeypatch, tmp_path):
    made, written = [], []

    class File:
        def __init__(self, path: Any, rate: float, width: int, height: int) -> None:
            made.append((path.relative_to(tmp_path).as_posix(), rate, width, height))

        def __enter__(self) -> "File":
            return self

        def __exit__(self, *_: object) -> None: ...

        def write(self, image: np.ndarray) -> None:
            written.append(image.shape[0])

    monkeypatch.setattr(detection, "VideoFile", File)
    detect_in(Frames(), monkeypatch, tmp_path, pictures=True)
    assert made == [("videos/name.mp4", 12.5, 6, 8)]
    assert written == [8, 9] * 5


def test_ctrl_c_ends_a_camera_normally_and_interrupts_a_video(monkeypatch, tmp_path):
    job, recorder = detect_in(Frames("camera:0", 3, is_interrupted=True), monkeypatch, tmp_path)
    assert (len(recorder.entries), job.num_faults) == (3, 0)
    with pytest.raises(KeyboardInterrupt):
        detect_in(Frames(is_interrupted=True), monkeypatch, tmp_path)


def test_a_folder_with_content_requires_overwrite(tmp_path):
    usual = tmp_path / "runs/detect"
    assert [output_folder(None, False, usual).name for _ in range(3)] == ["detect", "detect-2", "detect-3"]
    wanted = tmp_path / "far/below"
    assert output_folder(wanted, False, usual) == output_folder(wanted, False, usual) == wanted
    (wanted / "a.txt").touch()
    with pytest.raises(UsageError, match="is not empty; choose another --output, or --overwrite"):
        output_folder(wanted, False, usual)
    assert output_folder(wanted, True, usual) == wanted
    assert (wanted / "a.txt").exists()
    with pytest.raises(UsageError, match="is a file; name a folder"):
        output_folder(wanted / "a.txt", True, usual)
