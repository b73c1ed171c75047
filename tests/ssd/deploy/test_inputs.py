"""Which files a word means, what is said of the others, and how results are named."""

from itertools import islice

import pytest

from ssd.deploy import inputs
from ssd.deploy.inputs import find_inputs, output_name
from ssd.system.errors import UsageError


def test_names_reach_ever_further_up_and_are_numbered_then():
    names = list(islice(inputs._candidates("/a/b/c/d.jpg", "/a/b"), 5))
    assert names == ["c/d.jpg", "b/c/d.jpg", "a/b/c/d.jpg", "a/b/c/d-2.jpg", "a/b/c/d-3.jpg"]


def test_names_of_results_are_numbered_where_their_inputs_suffix_is_no_help():
    taken: set[str] = set()
    names = [output_name(name, ".mp4", taken) for name in ("a/clip.avi", "a/clip.avi", "a/CLIP.avi", "a/clip.avi")]
    assert names == ["a/clip.mp4", "a/clip.avi.mp4", "a/CLIP.avi-2.mp4", "a/clip.avi-3.mp4"]


def test_photos_that_are_not_read_are_counted_by_suffix(tmp_path):
    for name in ("a.jpg", "b.HEIC", "c.heic", "d.psd", "._e.heic", "._f.jpg", "g.txt", "h.MP4"):
        (tmp_path / name).touch()
    found = find_inputs([str(tmp_path)])
    assert [photo.name for photo in found.photos] == ["a.jpg"]
    assert [video.name for video in found.videos] == ["h.MP4"]
    assert +found.unread == {".heic": 2, ".psd": 1}


@pytest.mark.parametrize("is_folder", [True, False], ids=["folder", "file"])
@pytest.mark.parametrize("name, said", [("a.dng", "1 .dng skipped as unsupported; convert"), ("a.txt", r"\.jpg, .*\.mp4")])
def test_where_nothing_can_be_read_the_reason_is_told(tmp_path, name, said, is_folder):
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match=said) as caught:
        find_inputs([str(tmp_path if is_folder else tmp_path / name)])
    assert ("skipped" in str(caught.value)) == name.endswith(".dng")
