"""Files read by several processes."""

import os

import pytest

from data.dataset import parallel_reader
from data.layouts.find import find_format


@pytest.mark.parametrize("kind", ["voc", "coco", "yolo"])
def test_objects_are_counted_in_parallel(folders, kind, monkeypatch):
    alone = find_format(folders / kind)[1].class_counts()
    monkeypatch.setattr(parallel_reader, "MIN_PARALLEL", 0)
    monkeypatch.setattr(parallel_reader, "BATCH", 3)
    watched = []
    shared = find_format(folders / kind)[1].class_counts(2, lambda *done: watched.append(done))
    assert list(shared.items()) == list(alone.items())  # in the same order
    assert sum(alone.values()) == 106
    assert watched[-1] == ((1, 1) if kind == "coco" else (32, 32))
    assert len(watched) == (1 if kind == "coco" else 11)
    files = [str(i) for i in range(12)]
    workers = parallel_reader.count_in_files(files, lambda _: [os.getpid()], 2, parallel_reader.no_progress)
    assert os.getpid() not in workers
    assert list(workers.values()) == [6, 6]
