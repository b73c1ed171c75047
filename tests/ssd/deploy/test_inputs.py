"""The files that an argument names, messages about the others, and the names of results."""

from itertools import islice

import pytest

from ssd.deploy import inputs
from ssd.deploy.inputs import find_inputs, output_name
from ssd.system.errors import UsageError


def test_candidate_names_add_parent_folders_and_then_numbers():
    names = list(islice(inputs._candidates("/a/b/c/d.jpg", "/a/b"), 5))
    assert names == ["c/d.jpg", "b/c/d.jpg", "a/b/c/d.jpg", "a/b/c/d-2.jpg", "a/b/c/d-3.jpg"]


def test_result_names_fall_back_to_the_input_suffix_and_then_numbers():
    taken: set[str] = set()
    names = [output_name(name, ".mp4", taken) for name in ("a/clip.avi", "a/clip.avi", "a/CLIP.avi", "a/clip.avi")]
    assert names == ["a/clip.mp4", "a/clip.avi.mp4", "a/CLIP.avi-2.mp4", "a/clip.avi-3.mp4"]


def test_unsupported_photos_are_counted_by_suffix(tmp_path):
    for name in ("a.jpg", "b.HEIC", "c.heic", "d.psd", "._e.heic", "._f.jpg", "g.txt", "h.MP4"):
        (tmp_path / name).touch()
    found = find_inputs([str(tmp_path)])
    assert [photo.name for photo in found.photos] == ["a.jpg"]
    assert [video.name for video in found.videos] == ["h.MP4"]
    assert +found.unread == {".heic": 2, ".psd": 1}


@pytest.mark.parametrize("is_folder", [True, False], ids=["folder", "file"])
@pytest.mark.parametrize("name, said", [("a.dng", "1 .dng skipped as unsupported; convert"), ("a.txt", r"\.jpg, .*\.mp4")])
def test_an_argument_without_readable_files_is_explained(tmp_path, name, said, is_folder):
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match=said) as caught:
        find_inputs([str(tmp_path if is_folder else tmp_path / name)])
    assert ("skipped" in str(caught.value)) == name.endswith(".dng")
