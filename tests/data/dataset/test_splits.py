"""Choosing splits by name, and dividing folders without splits."""

import hashlib
from pathlib import Path

import pytest

from data.dataset import splits
from data.dataset.errors import DataError
from data.dataset.splits import VAL_FRACTION, choose, divide, divisible, draw, find_split
from ssd.config.schema import SourceConfig

FOLDER = Path("datasets/mine")
DIVIDED = tuple({"split": part, "val_fraction": VAL_FRACTION} for part in ("train", "val"))


def source(split: str, val_fraction: float | None = None) -> SourceConfig:
    return SourceConfig.model_validate({"path": "mine", "split": split, "val_fraction": val_fraction})


@pytest.mark.parametrize(
    "names, train, val",
    [
        (["train2014", "train2017", "val2014", "val2017"], "train2017", "val2017"),
        (["train2012", "train2017", "val2012"], "train2012", "val2012"),  # equal years before the latest year
        (["test", "train", "trainval", "val"], "train", "val"),
        (["test", "train", "trainval"], "trainval", "test"),
        (["test", "Training"], "Training", "test"),
    ],
)
def test_choose_pairs_matching_splits(names, train, val):
    for order in (names, names[::-1]):
        assert choose(FOLDER, order) == ({"split": train}, {"split": val})


def test_a_folder_without_an_evaluation_split_is_divided():
    for names in ([], ["train"], ["all"], ["train", "extra"]):
        assert choose(FOLDER, names) == DIVIDED
    for names in (["test"], ["extra"]):
        with pytest.raises(DataError, match=rf"mine: has the splits {names[0]}, but no pair"):
            choose(FOLDER, names)


def test_only_the_largest_split_is_divided():
    assert divisible(["train", "trainval", "all"]) == ["trainval"]
    assert divisible(["all", "train"]) == ["train"]
    assert divisible(["extra", "default"]) == ["default"]
    for names in (["train", "val"], ["trainval", "test"], ["extra"], []):
        assert divisible(names) == []


@pytest.mark.parametrize(
    "names, split, found",
    [
        (["train", "Train", "training"], "Train", "Train"),  # exact name, then ignoring case, then by role
        (["TRAIN", "training"], "train", "TRAIN"),
        (["training", "val"], "train", "training"),
        (["train", "val"], "all", None),
        ([], "all", None),
    ],
)
def test_find_split_prefers_the_name_to_the_role(names, split, found):
    assert find_split(FOLDER, source(split), names) == found


@pytest.mark.parametrize(
    "names, split, message",
    [
        (["Train", "TRAIN"], "train", "split train is ambiguous: Train, TRAIN; name one of them"),
        (["train", "val"], "extra", "no such split: extra; available: train, val"),
        ([], "extra", "no such split: extra; set split: all, or val_fraction to split the folder"),
    ],
)
def test_a_missing_split_error_lists_the_available_ones(names, split, message):
    with pytest.raises(DataError, match=f"mine: {message}$"):
        find_split(FOLDER, source(split), names)


def test_which_source_is_divided():
    assert find_split(FOLDER, source("train", 0.5), []) is None
    assert find_split(FOLDER, source("val", 0.5), ["train", "extra"]) == "train"
    with pytest.raises(DataError, match="needs split train or val, and a folder without its own splits"):
        find_split(FOLDER, source("all", 0.5), [])
    with pytest.raises(DataError, match="needs a folder without its own splits; available: train, val"):
        find_split(FOLDER, source("train", 0.5), ["train", "val"])


def parts(names: list[str], fraction: float, seed: int) -> tuple[set[str], set[str]]:
    train, val = (divide(names, FOLDER, source(part, fraction), seed) for part in ("train", "val"))
    assert train | val == set(names)
    assert not train & val
    return train, val


def test_a_photos_draw_decides_its_part():
    names = [f"{number:03}" for number in range(200)]
    _, val = parts(names, 0.3, 0)
    assert val == {name for name in names if draw(0, name) < 0.3}
    assert 30 < len(val) < 90
    assert parts(names[:100], 0.3, 0)[1] == val & set(names[:100])
    assert parts(names, 0.3, 1)[1] != val


def test_each_part_has_at_least_the_photo_with_the_nearest_draw(monkeypatch):
    """The draw decides, not the name."""
    drawn = {"a": 0.5, "b": 0.2, "c": 0.9, "d": 0.4}
    monkeypatch.setattr(splits, "draw", lambda _, name: drawn[name])
    assert parts(list(drawn), 0.1, 0) == ({"a", "c", "d"}, {"b"})
    assert parts(list(drawn), 0.95, 0) == ({"c"}, {"a", "b", "d"})
    assert parts(list(drawn), 0.4, 0) == ({"a", "c", "d"}, {"b"})  # a draw equal to the fraction goes to train
    assert parts(["a", "b"], 0.1, 0) == ({"a"}, {"b"})
    with pytest.raises(DataError, match="one photo cannot be divided into train and val"):
        divide(["a"], FOLDER, source("train", 0.5), 0)


def test_draws_are_uniform_and_reproducible():
    draws = [draw(0, str(number)) for number in range(1000)]
    assert 0 <= min(draws) < 0.01
    assert 0.99 < max(draws) < 1
    assert draw(7, "photo") == int(hashlib.sha256(b"7:photo").hexdigest()[:16], 16) / 2**64  # must never change
    assert 0 <= draw(0, "\udcff") < 1  # a name that is not UTF-8
