import os
import shutil

import numpy as np
import pytest

from data.dataset import disk_cache, source_cache
from data.dataset.annotations import Annotations
from data.dataset.errors import DataError
from data.layouts import voc
from tests.helpers.annotations import assert_equal, load
from tests.helpers.paths import ROOT
from tests.helpers.voc import item, make_folder, xml


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    third = xml(item(extra="<truncated>1</truncated>"), item(box=(1, 1, 9, 9)))
    make_folder(tmp_path / "one", {"a": xml(item()), "b": xml(), "c": third})
    return tmp_path / "one"


@pytest.fixture
def read(folder, monkeypatch):
    """Return a function that loads the folder, and returns the result and the names of the annotations it read."""

    def read_folder(split="all", classes=("cat",), **options):
        names = []
        with monkeypatch.context() as patch:
            parse = voc.parse_annotation
            patch.setattr(voc, "parse_annotation", lambda path, *rest: names.append(path.stem) or parse(path, *rest))
            loaded = load(folder, split, classes, **options)
        return loaded, names

    return read_folder


def test_a_second_start_reads_no_annotations_and_gives_the_same_data(read):
    first, names = read()
    assert names == ["a", "b", "c"]
    second, names = read()
    assert names == []
    assert_equal(second.photos, first.photos)
    assert second.notes == first.notes
    assert second.photos.ground_truth(2)["truncated"].tolist() == [1, -1]
    assert second.photos.select([2, 0]).truncated.tolist() == [1, -1, -1]
    assert Annotations.join([first.photos, second.photos]).truncated.tolist() == [-1, 1, -1] * 2


def changed_annotation(folder):
    path = folder / "Annotations/a.xml"
    times = path.stat()
    path.write_text(path.read_text().replace("cat", "cat "))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # other size, same time


def touched_annotation(folder):
    path = folder / "Annotations/a.xml"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))  # same size, other time


def touched_photo(folder):
    path = folder / "JPEGImages/a.jpg"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


def corrected_annotation(folder):
    """Keep size and time, like archives with a single date and copies that keep their times."""
    path = folder / "Annotations/a.xml"
    times = path.stat()
    path.write_text(path.read_text().replace("<xmax>30<", "<xmax>29<"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    assert "<xmax>29<" in path.read_text()


def replaced_photo(folder):
    """Do the same to a photo by replacing its file."""
    path = folder / "JPEGImages/a.jpg"
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[15] ^= 1  # the density in its header
    path.with_name("new").write_bytes(content)
    os.utime(path.with_name("new"), ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(path.with_name("new"), path)


def added(folder):
    shutil.copy(folder / "Annotations/a.xml", folder / "Annotations/d.xml")
    shutil.copy(folder / "JPEGImages/a.jpg", folder / "JPEGImages/d.jpg")


def renamed(folder):
    os.rename(folder / "JPEGImages/a.jpg", folder / "JPEGImages/z.jpg")
    os.rename(folder / "Annotations/a.xml", folder / "Annotations/z.xml")


def linked(folder):
    """Replace the target of a link, but not the link."""
    os.rename(folder.parent / "elsewhere.xml", folder.parent / "before.xml")
    (folder.parent / "elsewhere.xml").write_text(xml(item(), item(), item()))


CHANGES = [
    changed_annotation, touched_annotation, corrected_annotation, touched_photo, replaced_photo, added, renamed, linked,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("has_change_time", [True, False], ids=["", "Windows"])
def test_any_change_in_the_folder_invalidates_the_cache(folder, read, change, has_change_time, monkeypatch):
    monkeypatch.setattr(disk_cache, "HAS_CHANGE_TIME", has_change_time)
    (folder.parent / "elsewhere.xml").write_text(xml(item()))
    (folder / "Annotations/c.xml").unlink()
    (folder / "Annotations/c.xml").symlink_to(folder.parent / "elsewhere.xml")
    read()
    assert read()[1] == []
    change(folder)
    again, names = read()
    assert len(names) >= 3
    assert len(again.photos) == len(names)
    assert read()[1] == []


def test_another_split_classes_or_options_miss_the_cache(folder, read):
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "ImageSets/Main/some.txt").write_text("a\n")
    read()
    assert read(split="some")[1] == ["a"]
    assert read(classes=("dog", "cat"))[1] == ["a", "b", "c"]
    assert read(other_classes="ignore")[1] == ["a", "b", "c"]
    assert read(seed=5)[1] == []  # nothing is drawn
    assert read()[1] == []
    (folder / "ImageSets/Main/some.txt").write_text("b\n")
    assert read(split="some")[1] == ["b"]


def test_changed_code_invalidates_the_cache(read, monkeypatch):
    read()
    monkeypatch.setattr(source_cache, "_code_digest", lambda: "another version")
    assert read()[1] == ["a", "b", "c"]


def test_the_code_digest_covers_every_reader():
    names = {path.relative_to(ROOT).as_posix() for path in source_cache.code_files()}
    assert {"data/layouts/voc.py", "data/dataset/source_cache.py", "ssd/boxes.py", "ssd/system/images.py"} <= names


def test_faults_are_never_cached(folder, read):
    (folder / "Annotations/b.xml").write_text(xml(item(name="horse")))
    for _ in range(2):
        with pytest.raises(DataError, match="unknown class 'horse'"):
            read()


def test_photos_outside_the_folder_are_read_every_time(folder, read):
    """The digest does not cover photos in other folders."""
    (folder.parent / "photos").mkdir()
    os.rename(folder / "JPEGImages", folder.parent / "photos/JPEGImages")
    (folder / "JPEGImages").symlink_to(folder.parent / "photos/JPEGImages")
    read()
    assert read()[1] == []  # links to folders are followed
    cache = source_cache.SourceCache(folder, "reading", source_cache.FolderDigest(folder, lambda: None))
    (folder.parent / "other").mkdir()
    outside = os.fsencode(folder.parent / "other/a.jpg")
    for paths, kept in ((np.array([outside]), False), (np.array([os.fsencode(folder / "JPEGImages/a.jpg")]), True)):
        cache.save(paths, {"paths": paths}, {})
        assert (cache.load() is not None) == kept


def test_a_missing_home_or_a_vanished_folder_only_disables_the_cache(folder, read, monkeypatch):
    def homeless() -> None:
        raise RuntimeError("Could not determine home directory.")

    cache = source_cache.SourceCache(folder, "reading", source_cache.FolderDigest(folder, lambda: None))
    cache.save(np.array([b"/no/such/folder/a.jpg"]), {}, {})
    assert cache.load() is None
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", homeless)
    for _ in range(2):
        assert read()[1] == ["a", "b", "c"]


def test_old_cache_files_are_removed(folder, read, tmp_path, monkeypatch):
    monkeypatch.setattr(source_cache, "MAX_FILES", 2)
    for classes in (("cat",), ("cat", "dog"), ("cat", "cow")):
        read(classes=classes)
    assert len(list((tmp_path / "cache/ssd300").glob("data-*"))) == 2
    assert read(classes=("cat", "cow"))[1] == []
    assert read(classes=("cat",))[1] == ["a", "b", "c"]


def test_circular_links_are_followed_once(folder, read):
    (folder / "JPEGImages/up").symlink_to(folder)
    read()
    assert read()[1] == []


def test_a_long_scan_can_be_stopped(folder, monkeypatch):
    monkeypatch.setattr(source_cache, "TICK_FILES", 1)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source_cache.FolderDigest(folder, stop)
