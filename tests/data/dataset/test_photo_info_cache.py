import os

import pytest
from PIL import Image

from data.dataset import annotation_loader, parallel_reader
from data.dataset.errors import DataError
from tests.helpers.annotations import assert_equal, load
from tests.helpers.voc import item, make_folder, xml


@pytest.fixture
def looked_at(tmp_path, monkeypatch):
    """Return a function that loads a folder of two photos, and returns the names of those it had to check."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_folder(tmp_path / "one", {"a": xml(item()), "b": xml()})

    def checked() -> list[str]:
        names = []
        inspect = parallel_reader.check_photo
        with monkeypatch.context() as patch:
            patch.setattr(parallel_reader, "check_photo", lambda path: names.append(path.name) or inspect(path))
            load(tmp_path / "one")
        return names

    return checked


def test_a_photo_is_checked_once(looked_at):
    assert looked_at() == ["a.jpg", "b.jpg"]
    assert looked_at() == []


def test_the_cache_of_a_folder_is_read_once(looked_at, monkeypatch):
    made, kind = [], annotation_loader.PhotoInfoCache
    monkeypatch.setattr(annotation_loader, "PhotoInfoCache", lambda folder: made.append(folder) or kind(folder))
    looked_at()
    assert len(made) == 1


def test_a_changed_photo_is_checked_again(looked_at, tmp_path):
    looked_at()
    photo = tmp_path / "one/JPEGImages/a.jpg"
    times = photo.stat()
    photo.write_bytes(photo.read_bytes() + b"x")
    os.utime(photo, ns=(times.st_atime_ns, times.st_mtime_ns))  # other size, same time
    assert looked_at() == ["a.jpg"]
    os.utime(photo, ns=(times.st_atime_ns, times.st_mtime_ns + 1))  # same size, other time
    assert looked_at() == ["a.jpg"]
    content = bytearray(photo.read_bytes())
    content[-1] ^= 1
    photo.write_bytes(content)
    os.utime(photo, ns=(times.st_atime_ns, times.st_mtime_ns + 1))  # same size and time
    assert looked_at() == ["a.jpg"]
    photo.write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        looked_at()
    with pytest.raises(DataError, match="is empty"):  # faults are checked again
        looked_at()


def test_an_unreadable_or_unwritable_cache_is_ignored(looked_at, tmp_path, monkeypatch):
    looked_at()
    cache = tmp_path / "cache/ssd300"
    (memory,) = cache.glob("photos-*")
    for content in (b"", b"{", memory.read_bytes()[:-30], b"PK" + bytes(200)):
        for path in cache.iterdir():
            path.write_bytes(content)
        assert looked_at() == ["a.jpg", "b.jpg"]
        assert looked_at() == []
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert looked_at() == ["a.jpg", "b.jpg"]


def test_new_checks_join_earlier_ones(looked_at, tmp_path):
    looked_at()
    Image.new("RGB", (100, 80), "red").save(tmp_path / "one/JPEGImages/a.jpg")
    assert looked_at() == ["a.jpg"]
    for path in (tmp_path / "cache/ssd300").glob("data-*"):
        path.unlink()
    assert looked_at() == []


def test_several_processes_check_many_photos(tmp_path, monkeypatch):
    make_folder(tmp_path / "one", {f"{i:03d}": xml(*[item()] * (i % 3)) for i in range(300)})
    progress, loaded = [], []
    for workers in (2, 0):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache of {workers}"))
        watch = lambda *done: progress.append(done)  # noqa: E731
        loaded.append(load(tmp_path / "one", workers=workers, progress=watch))
    assert [done for done in progress if done[0] == 300] == [(300, 300)] * 2
    assert_equal(loaded[0].photos, loaded[1].photos)
