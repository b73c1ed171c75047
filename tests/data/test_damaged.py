"""data.damaged: undecodable photos and unreadable annotations."""

import pytest

from data.dataset import parallel_reader
from data.dataset.annotation_loader import load_annotations
from data.dataset.errors import DataError
from ssd.config.schema import SourceConfig
from tests.helpers.photos import DAMAGED
from tests.helpers.voc import item, make_folder, xml


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """40 photos, one truncated, and one with a truncated annotation."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_folder(tmp_path / "one", {f"{i:02d}": xml(item()) for i in range(40)})
    photo = tmp_path / "one/JPEGImages/03.jpg"
    photo.write_bytes(photo.read_bytes()[:150])
    (tmp_path / "one/Annotations/07.xml").write_text("<annotation><object>")
    return tmp_path / "one"


def load(folder, **options):
    return load_annotations([SourceConfig(path=folder.name)], folder.parent, ["cat"], **options)


def test_refuse_reports_each_photo_in_one_line(folder):
    with pytest.raises(DataError) as caught:
        load(folder)
    lines = str(caught.value).splitlines()
    assert ["03.jpg" in lines[0], "07.xml: is not valid XML" in lines[1], len(lines)] == [True, True, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_leaves_them_out_and_lists_them(folder, workers, monkeypatch):
    monkeypatch.setattr(parallel_reader, "MIN_PARALLEL", 10)
    for _ in range(2):  # the second time from the cache
        loaded = load(folder, damaged="skip", workers=workers)
        names = [loaded.photos.path(i)[-6:-4] for i in range(len(loaded.photos))]
        assert names == [f"{i:02d}" for i in range(40) if i not in (3, 7)]
        assert len(loaded.photos.labels) == 38
        assert loaded.num_damaged == 2
        assert ["03.jpg: " in loaded.damaged[0], "07.xml: is not valid" in loaded.damaged[1]] == [True, True]
        assert loaded.notes == ("2 of 40 photos cannot be read and were left out (data.damaged: skip)",)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_photo_damaged_inside_is_reported_again_from_the_cache(folder, workers, monkeypatch, capfd):
    monkeypatch.setattr(parallel_reader, "MIN_PARALLEL", 10)
    (folder / "JPEGImages/03.jpg").write_bytes(DAMAGED)
    for _ in range(2):
        with pytest.raises(DataError, match=r"03.jpg: is damaged or truncated \(.*\); replace it, or remove it from the split"):
            load(folder, workers=workers)
        assert load(folder, damaged="skip", workers=workers).num_damaged == 2
    assert capfd.readouterr() == ("", "")


def test_skip_refuses_too_many_damaged_photos(folder):
    (folder / "JPEGImages/11.jpg").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        load(folder, damaged="skip")
    first, *rest = str(caught.value).splitlines()
    assert first == "3 of 40 photos cannot be read; data.damaged: skip leaves out at most 5%"
    assert len(rest) == 3


def test_skip_covers_missing_photos_but_not_wrong_boxes(folder):
    (folder / "JPEGImages/03.jpg").unlink()
    assert "03: no photo of that name" in load(folder, damaged="skip").damaged[0]
    (folder / "Annotations/09.xml").write_text(xml(item(name="horse")))
    with pytest.raises(DataError, match="unknown class 'horse'"):
        load(folder, damaged="skip")


def test_a_damaged_photo_is_checked_again_only_after_a_change(folder, monkeypatch):
    names = []
    inspect = parallel_reader.check_photo
    monkeypatch.setattr(parallel_reader, "check_photo", lambda path: names.append(path.name) or inspect(path))
    load(folder, damaged="skip")
    assert len(names) == 40
    (folder / "new").mkdir()  # so that annotations are read again
    assert load(folder, damaged="skip").num_damaged == 2
    assert len(names) == 40
    (folder / "JPEGImages/03.jpg").write_bytes((folder / "JPEGImages/04.jpg").read_bytes())
    assert load(folder, damaged="skip").num_damaged == 1
    assert names[40:] == ["03.jpg"]


def test_temporary_errors_are_not_cached(folder, monkeypatch):
    from data.dataset.errors import UnreachableError

    def unreachable(path):
        raise UnreachableError(f"{path}: cannot be read: Input/output error")

    inspect = parallel_reader.check_photo
    monkeypatch.setattr(parallel_reader, "check_photo", lambda path: (unreachable if path.stem == "20" else inspect)(path))
    (folder / "JPEGImages/03.jpg").write_bytes((folder / "JPEGImages/04.jpg").read_bytes())
    assert "20.jpg: cannot be read: Input/output error" in load(folder, damaged="skip").damaged[1]
    monkeypatch.setattr(parallel_reader, "check_photo", inspect)
    assert load(folder, damaged="skip").num_damaged == 1
