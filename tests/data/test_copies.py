"""Copies of a photo under other names, in both parts of the data or in one."""

import os

import pytest

from data.dataset.annotation_loader import load_annotations
from data.dataset.annotations import shared_warning
from ssd.config.schema import SourceConfig
from tests.helpers.voc import item, make_folder, xml


def copied(source, target):
    target.write_bytes(source.read_bytes())


@pytest.mark.parametrize("put", [copied, lambda source, target: target.symlink_to(source), lambda *both: os.link(*both)])
def test_a_photo_in_both_parts_is_found_under_any_name(tmp_path, put):
    for name, photos in (("one", "abc"), ("two", "de")):
        make_folder(tmp_path / name, {photo: xml(item()) for photo in photos})
    (tmp_path / "two/JPEGImages/d.jpg").unlink()
    put(tmp_path / "one/JPEGImages/b.jpg", tmp_path / "two/JPEGImages/d.jpg")
    for _ in range(2):  # the second time from the cache
        train, val = (load_annotations([SourceConfig(path=path)], tmp_path, ["cat"]).photos for path in ("one", "two"))
        one, two = tmp_path / "one/JPEGImages/b.jpg", tmp_path / "two/JPEGImages/d.jpg"
        message = f"warning: 1 photos are in both data.train and data.val ({one} is {two}): mAP will be too high"
        assert shared_warning(train, val) == [message]
    assert shared_warning(train.select([0, 2]), val) == []


def test_copies_within_a_part_are_counted(tmp_path):
    make_folder(tmp_path / "one", {photo: xml(item()) for photo in "abcd"})
    for name in "ca":
        copied(tmp_path / "one/JPEGImages/b.jpg", tmp_path / f"one/JPEGImages/{name}.jpg")
    (note,) = load_annotations([SourceConfig(path="one")], tmp_path, ["cat"]).notes
    where = tmp_path / "one/JPEGImages"
    assert note == f"2 photos are copies of another ({where}/a.jpg is {where}/b.jpg, ...) and count twice; remove the copies"
