"""Fixtures of many tests: the shapes data set, drawn once, and the real data sets if they exist."""

import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.dataset.annotations import Annotations
from data.shapes import CLASSES, write_shapes
from ssd.config.schema import ModelConfig
from ssd.model import SSD300
from ssd.preprocessing import IMAGENET, normalize, resize
from ssd.system.images import read_photo
from ssd.weights.checkpoint import TrainState, save_checkpoint
from tests.helpers import formats
from tests.helpers.offline import refuse
from tests.helpers.paths import ROOT

SHARED = ROOT.parent / "shared" / "data"
OF_WORKERS: Counter[str] = Counter()  # counts from the workers of pytest-xdist

# For tiny networks, one thread is faster: threads that share a core with other work wait for each other at every operation.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the cache of tests apart from the user's."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `shapes`, with 24 images to train on and 8 to evaluate on."""
    root = tmp_path_factory.mktemp("datasets")
    write_shapes(root / "shapes", num_train=24, num_val=8, seed=3)
    return root


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the real data sets."""
    if not SHARED.is_dir():
        pytest.skip(f"the real data sets are not at {SHARED}")
    return SHARED


@pytest.fixture
def restored_signals() -> Iterator[None]:
    """Restore pytest's signal handlers, which the commands replace."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the report, which takes longer than a short training."""
    monkeypatch.setattr("ssd.training.validate.write_report", lambda *_: None)


@pytest.fixture
def bare_machine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """For scripts/new_config.py: a fast machine, without measurements, weights or a network."""
    from ssd.autoconfig import proposal, timing
    from ssd.autoconfig.timing import Timings
    from ssd.weights import sources

    folder = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    for name in sources.SHIPPED:
        monkeypatch.setitem(sources.SHIPPED, name, folder / f"{name}.pt")
    monkeypatch.setattr(sources, "fetch", refuse)
    monkeypatch.setattr(sources, "ask", refuse)
    monkeypatch.setattr(proposal, "try_out", lambda *_: Timings(5, 0.1, 1, 0.1, 1, 2))
    monkeypatch.setattr(timing, "SECONDS", 0)


@pytest.fixture
def proposed(bare_machine: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs new_config.py on a folder, and returns its output, or its errors if it exits with `code`."""
    from scripts import new_config

    def run(folder: Path, *options: str, code: int = 0) -> str:
        assert new_config.main([str(folder), "--output", str(tmp_path / "a.yaml"), *options]) == code
        return capsys.readouterr()[bool(code)]

    return run


@pytest.fixture(scope="session")
def shapes(shapes_root: Path) -> Annotations:
    """The photos to train on of `shapes`."""
    return formats.load_shapes(shapes_root / "shapes", "train").photos


@pytest.fixture
def folders(shapes_root: Path, tmp_path: Path) -> Path:
    """A folder with the same photos as VOC, COCO and YOLO, without splits."""
    photos = formats.load_shapes(shapes_root / "shapes", "trainval").photos
    shutil.copytree(shapes_root / "shapes", tmp_path / "voc")
    shutil.rmtree(tmp_path / "voc/ImageSets")
    formats.copy_photos(photos, tmp_path / "coco/images")
    (tmp_path / "coco/all.json").write_text(json.dumps(formats.as_coco(photos)))
    formats.write_yolo(photos, tmp_path / "yolo/images", tmp_path / "yolo/labels")
    (tmp_path / "yolo/classes.txt").write_text("\n".join(CLASSES))
    return tmp_path


def bad_input() -> Counter[str]:
    """Return this process's counts for the table of bad inputs."""
    return getattr(sys.modules.get("tests.test_bad_input"), "TALLY", Counter())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the counts of a pytest-xdist worker to the process that prints them."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["bad input"] = dict(bad_input())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    OF_WORKERS.update(getattr(node, "workeroutput", {}).get("bad input", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    count_files = OF_WORKERS or bad_input()
    if count_files:
        terminalreporter.write_line("bad input: " + ", ".join(f"{count} {name}" for name, count in count_files.items()))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, shapes_root: Path) -> Path:
    """A checkpoint of a small network with random weights that detect many objects."""
    torch.manual_seed(0)
    model = SSD300(len(CLASSES) + 1, batch_norm="backbone", width=0.1).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1  # use a batch's statistics unchanged
    with torch.no_grad():
        paths = sorted((shapes_root / "shapes/JPEGImages").iterdir())[:16]
        images = torch.from_numpy(np.stack([resize(read_photo(path), 300, 300) for path in paths]))
        model(normalize(images, IMAGENET))
        for head in model.conf:
            torch.nn.init.normal_(head.weight, std=0.01)
            head.bias.view(-1, model.num_classes)[:, 0] = 2  # most DBoxes are background
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    options = ModelConfig.model_validate({"pretrained": "none", "batch_norm": "backbone", "width": 0.1})
    config = {"model": options.model_dump(mode="json")}
    save_checkpoint(path, TrainState(model.state_dict(), list(CLASSES), IMAGENET.to_plain(), config))
    return path
