"""A run's data: what is left out, and what is cached."""

import os
import re
import shutil
from types import SimpleNamespace
from typing import Any

import pytest

import train
from data.loading import image_cache, workers
from ssd.config.file import load_config, parse_config
from ssd.preprocessing import IMAGENET
from ssd.system.distributed import World
from ssd.system.stop import Stopped
from ssd.training import datasets
from ssd.training.datasets import eval_dataset, load_data, tiles_notes, train_dataset
from ssd.training.run import Run
from tests.helpers.runs import write_config

pytestmark = pytest.mark.slow

TINY = {"train": {"iterations": 1, "batch_size": 2, "warmup": 0}, "model": {"width": 0.05}}


@pytest.fixture
def damaged_root(shapes_root, tmp_path):
    """Shapes, with a damaged photo in the training part, 1 of 24."""
    shutil.copytree(shapes_root / "shapes", tmp_path / "shapes")
    name = (tmp_path / "shapes/ImageSets/Main/train.txt").read_text().split()[3]
    (tmp_path / f"shapes/JPEGImages/{name}.jpg").write_bytes(b"\xff\xd8 cut off")
    return tmp_path, name


def test_damaged_photos_are_counted_and_listed_in_the_output_folder(damaged_root, shapes_root, tmp_path, capsys):
    root, name = damaged_root
    config = write_config(tmp_path, root, data={"damaged": "skip", "workers": 0}, **TINY)
    assert train.main(["--config", str(config)]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "cannot be read" in line]
    assert said == ["data.train: 1 of 24 photos cannot be read and were left out (data.damaged: skip)"]
    (line,) = (tmp_path / "run/damaged.txt").read_text().splitlines()
    assert line.startswith(f"{root}/shapes/JPEGImages/{name}.jpg: is not a supported image")
    shutil.copy(shapes_root / f"shapes/JPEGImages/{name}.jpg", root / f"shapes/JPEGImages/{name}.jpg")
    assert train.main(["--config", str(config), "--overwrite"]) == 0
    assert not (tmp_path / "run/damaged.txt").exists()


def alone(tmp_path, root, **data: object) -> Run:
    return Run.alone(load_config(write_config(tmp_path, root, data=data)))


def test_a_damaged_photo_of_both_parts_is_listed_once(damaged_root, tmp_path):
    root, name = damaged_root
    sources = [{"path": "shapes", "split": "trainval"}]
    run = alone(tmp_path, root, damaged="skip", train=sources, val=sources)
    assert [f"{name}.jpg" in line for line in load_data(run).damaged] == [True]


def test_photos_are_cached_if_they_fit(shapes_root, tmp_path, monkeypatch, capsys):
    run = alone(tmp_path, shapes_root, cache="ram")
    photos = load_data(run).train
    size = image_cache.cache_bytes(photos.sizes, 300)
    samples = train_dataset(run, photos, IMAGENET)
    assert samples.cache.bytes == size
    assert "warning" not in capsys.readouterr().out
    for module in (image_cache, datasets):
        monkeypatch.setattr(module, "free_memory", lambda: size)
    assert train_dataset(run, photos, IMAGENET).cache is None
    assert capsys.readouterr().out.splitlines() == [
        "warning: data.cache: ram needs 0.0 GiB, more than 80% of the 0.0 GiB of free memory; continuing without the cache"
    ]


def test_spawned_workers_have_a_cache_each(shapes_root, tmp_path, monkeypatch, capsys):
    run = alone(tmp_path, shapes_root, cache="ram", workers=3)
    photos = load_data(run).train
    size = image_cache.cache_bytes(photos.sizes, 300)
    monkeypatch.setattr(image_cache, "free_memory", lambda: 2 * size)
    assert train_dataset(run, photos, IMAGENET).cache is not None
    monkeypatch.setattr(workers, "start_method", lambda: "spawn")
    assert train_dataset(run, photos, IMAGENET).cache is None
    assert "GiB for each of 3 processes, more than" in capsys.readouterr().out
    assert train_dataset(alone(tmp_path, shapes_root, cache="ram", workers=1), photos, IMAGENET).cache is not None


def test_a_dry_run_counts_the_cache(shapes_root, tmp_path, capsys):
    config = write_config(tmp_path, shapes_root, data={"cache": "ram", "workers": 0}, **TINY)
    assert train.main(["--config", str(config), "--dry-run"]) == 0
    assert "GiB more for data.cache: ram" in capsys.readouterr().out


def test_processes_with_different_photos_are_refused(shapes_root, tmp_path, monkeypatch):
    """A photo may be damaged on one machine only; batches would then be divided differently."""
    gather = World.all_gather

    def with_another(world: World, value: object, **options: object) -> list:
        theirs = [(23, 1), (8, 0)]
        return [value, theirs] if value == [(24, 0), (8, 0)] else gather(world, value)

    monkeypatch.setattr(World, "all_gather", with_another)
    with pytest.raises(datasets.DataError, match=r"process 1 .* 23 and 8 photos, process 0 24 and 8"):
        load_data(alone(tmp_path, shapes_root))


def test_a_folder_of_both_parts_is_scanned_once(shapes_root, tmp_path, monkeypatch):
    listed = []
    scan = os.scandir
    monkeypatch.setattr("os.scandir", lambda path: listed.append(str(path)) or scan(path))
    load_data(alone(tmp_path, shapes_root))
    listed.clear()
    load_data(alone(tmp_path, shapes_root))
    assert len(listed) == len(set(listed)) >= 3


def notes(run: Run) -> list[str]:
    train, val, _ = load_data(run)
    return tiles_notes(run.config, train_dataset(run, train, IMAGENET), eval_dataset(run, val, IMAGENET))


def test_tiles_notes(shapes_root, tmp_path):
    assert notes(alone(tmp_path, shapes_root)) == []
    said = notes(alone(tmp_path, shapes_root, tiles={}))
    assert said == ["warning: data.tiles.size 600: no photo is larger, so there are no tiles"]
    counts, warning = notes(alone(tmp_path, shapes_root, tiles={"size": 150, "background": 1.0}))
    assert re.fullmatch(r"tiles of 150 pixels: \d+ to train on, [1-9]\d* of them without objects; \d+ to evaluate on", counts)
    assert warning.startswith("warning: loss.min_neg 0: tiles without objects teach nothing; set it to 3")
    (counts,) = notes(alone(tmp_path, shapes_root, tiles={"size": 150, "background": 0.0}))
    assert " 0 of them without objects" in counts


@pytest.mark.parametrize("workers, taken", [("auto", 6), (9, 6), (2, 2), (0, 0)])
def test_data_workers_limits_the_processes_that_read_photos(tmp_path, shapes_root, monkeypatch, workers, taken):
    """A limit set for lack of memory must apply there too."""
    config = load_config(write_config(tmp_path, shapes_root, data={"workers": workers}), [])
    asked = []
    load = datasets.load_annotations

    def counted(data, part, seed, workers, *rest):
        asked.append(workers)
        return load(data, part, seed, 0, *rest)

    monkeypatch.setattr(datasets, "num_cores", lambda: 6)
    monkeypatch.setattr(datasets, "load_annotations", counted)
    load_data(Run.alone(config))
    assert asked == [taken] * 2


@pytest.fixture
def reading(monkeypatch):
    """Replace load_annotations and the progress bar, and collect their arguments."""
    given: dict[str, Any] = {}

    class Bar(SimpleNamespace):
        def __enter__(self):
            given["bar"] = self
            return self

        def __exit__(self, *_: object) -> None: ...

        def update(self, count: int) -> None:
            self.n += count

    def read(data: object, part: str, seed: int, workers: int, progress: Any, digests: object) -> None:
        given.update(arguments=(data, part, seed, digests), workers=workers)
        for done in (1, 3):
            progress(done, 7)
        given["bar"] = (given["bar"].n, given["bar"].total, given["bar"].disable)

    monkeypatch.setattr(datasets, "tqdm", lambda **options: Bar(n=0, **options))
    monkeypatch.setattr(datasets, "load_annotations", read)
    return given


def test_photos_are_loaded_as_configured(reading, monkeypatch):
    monkeypatch.setattr(datasets, "num_cores", lambda: 6)
    data = {"train": [{"path": "a"}], "val": [{"path": "b"}], "workers": 4}
    run = Run.alone(parse_config({"data": data, "seed": 9}))
    for part in ("train", "val"):
        datasets._load_part(run, part, {})
        assert reading["arguments"] == (run.config.data, part, 9, {})
        assert reading["workers"] == 4
        assert reading["bar"] == (3, 7, None)
    run.world = World(rank=1, size=2, local_size=2)
    run.config = run.config.model_copy(update={"data": run.config.data.model_copy(update={"workers": "auto"})})
    datasets._load_part(run, "val", {})
    assert reading["workers"] == 3  # cores are shared
    assert reading["bar"] == (3, 7, True)  # a single process draws a bar
    run.stop.signal = 15
    with pytest.raises(Stopped):
        datasets._load_part(run, "val", {})
