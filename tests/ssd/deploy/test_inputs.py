"""The files that an argument names, messages about the others, and the names of results."""

from itertools import islice

import pytest

from ssd.deploy import inputs
from ssd.deploy.inputs import find_inputs, output_name, split_checkpoint
from ssd.system.errors import UsageError
from ssd.weights.sources import DEFAULT, SHIPPED, checkpoint_file


def test_candidate_names_add_parent_folders_and_then_numbers():
    names = list(islice(inputs._candidates("/a/b/c/d.jpg", "/a/b"), 5))
    assert names == ["c/d.jpg", "b/c/d.jpg", "a/b/c/d.jpg", "a/b/c/d-2.jpg", "a/b/c/d-3.jpg"]


def test_result_names_fall_back_to_the_input_suffix_and_then_numbers():
    taken: set[str] = set()
    names = [output_name(name, ".mp4", taken) for name in ("a/clip.avi", "a/clip.avi", "a/CLIP.avi", "a/clip.avi")]
    assert names == ["a/clip.mp4", "a/clip.avi.mp4", "a/CLIP.avi-2.mp4", "a/clip.avi-3.mp4"]


@pytest.mark.parametrize(
    "word", ["photos", "new/a.jpg", "a.PNG", "clip.mp4", "a.heic", "*.jpg", "a?/b", "camera:0", "https://example.org/a"]
)
def test_an_input_in_the_first_place_means_the_shipped_network(tmp_path, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert split_checkpoint([word, "other"]) == (DEFAULT, [word, "other"])


@pytest.mark.parametrize("word", ["best.pt", "none/last.pt", "best.onnx", "slim", "runs/mine", "[1].pt"])
def test_anything_else_in_the_first_place_is_a_checkpoint(tmp_path, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/mine/checkpoints").mkdir(parents=True)
    (tmp_path / "[1].pt").touch()
    assert split_checkpoint([word, "a.jpg"]) == (word, ["a.jpg"])
    assert split_checkpoint([]) == (DEFAULT, [])


@pytest.mark.parametrize("is_folder", [True, False], ids=["folder", "file"])
def test_a_folder_or_file_called_half_does_not_hide_the_shipped_network(tmp_path, monkeypatch, is_folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "half").mkdir() if is_folder else (tmp_path / "half").touch()
    checkpoint, words = split_checkpoint(["photos"])
    assert (checkpoint_file(checkpoint), words) == (SHIPPED["half"], ["photos"])
    assert split_checkpoint(["half", "photos"])[1] == (["half", "photos"] if is_folder else ["photos"])
    assert checkpoint_file("half") == (SHIPPED["half"] if is_folder else tmp_path.joinpath("half").relative_to(tmp_path))


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
