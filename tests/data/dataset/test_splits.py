"""Choosing splits by name, and dividing folders without splits."""

import hashlib
import time
from pathlib import Path

import numpy as np
import pytest

from data.dataset import splits
from data.dataset.errors import DataError
from data.dataset.splits import VAL_FRACTION, choose, divide, divisible, draw, find_split, make_folds
from ssd.config.schema import SourceConfig
from tests.helpers.annotations import load
from tests.helpers.exports import NAMES, SHOTS, coco, dump, numbers_of, photos, texts, write, xmls
from tests.helpers.voc import make_folder, xml

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


def validation(names: list[str], fraction: float, seed: int = 0, groups=None, objects=None) -> set[str]:
    numbers = np.arange(len(names)) if groups is None else np.array(groups)
    chosen = divide(names, numbers, None if objects is None else np.array(objects), fraction, seed)
    assert 0 < chosen.sum() < len(names)
    return {name for name, is_val in zip(names, chosen, strict=True) if is_val}


def test_a_photos_draw_decides_its_part():
    names = [f"{number:03}" for number in range(200)]
    val = validation(names, 0.3)
    assert val == {name for name in names if draw(0, name) < 0.3}
    assert 30 < len(val) < 90
    assert validation(names[:100], 0.3) == val & set(names[:100])
    assert validation(names, 0.3, seed=1) != val
    assert validation(names, 0.3, objects=np.ones((200, 1))) == val  # even enough: nothing moves


def test_each_part_has_at_least_the_photo_with_the_nearest_draw(monkeypatch):
    """The draw decides, not the name."""
    drawn = {"a": 0.5, "b": 0.2, "c": 0.9, "d": 0.4}
    monkeypatch.setattr(splits, "draw", lambda _, name: drawn[name])
    assert validation(list(drawn), 0.1) == {"b"}
    assert validation(list(drawn), 0.95) == {"a", "b", "d"}
    assert validation(list(drawn), 0.4) == {"b"}  # a draw equal to the fraction goes to train
    assert validation(["a", "b"], 0.1) == {"b"}
    with pytest.raises(ValueError, match="only one group"):
        divide(["a", "b"], np.array([3, 3]), None, 0.5, 0)


def test_a_group_goes_where_the_draw_of_its_first_name_says():
    names = [f"{number:03}" for number in range(100)]
    groups = np.arange(100) // 5 + 7
    val = validation(names, 0.3, groups=groups)
    firsts = {name[:2] for name in val}
    assert val == {name for name, group in zip(names, groups, strict=True) if draw(0, names[5 * (group - 7)]) < 0.3}
    assert len(firsts) > 1
    order = np.random.default_rng(0).permutation(100)
    assert validation([names[i] for i in order], 0.3, groups=groups[order]) == val  # the order does not matter


def test_every_class_is_on_both_sides_if_groups_allow():
    """Brute force over all divisions finds none that divides the objects more evenly where groups are few."""
    rng = np.random.default_rng(0)
    for seed in range(20):
        num_groups, classes = 9, 3
        groups = rng.integers(0, num_groups, 40)
        groups[:num_groups] = np.arange(num_groups)
        objects = rng.integers(0, 3, (40, classes)) * (rng.random((40, classes)) < 0.3)
        chosen = divide([str(i) for i in range(40)], groups, objects, 0.25, seed)
        assert all(len(set(chosen[groups == group])) == 1 for group in range(num_groups))
        for label in range(classes):
            owners = set(groups[objects[:, label] > 0])
            if len(owners) > 1:
                assert 0 < objects[chosen, label].sum() < objects[:, label].sum()


def test_a_rare_class_moves_few_photos():
    names = [f"{number:03}" for number in range(200)]
    by_draw = sorted(range(200), key=lambda number: draw(0, names[number]))
    objects = np.zeros((200, 2))
    objects[:, 0] = 1
    objects[by_draw[100:103], 1] = 1  # three objects, which the draw alone leaves in train
    plain = validation(names, 0.2)
    assert validation(names, 0.2, objects=objects) == plain | {names[by_draw[100]]}


def test_draws_are_uniform_and_reproducible():
    draws = [draw(0, str(number)) for number in range(1000)]
    assert 0 <= min(draws) < 0.01
    assert 0.99 < max(draws) < 1
    assert draw(7, "photo") == int(hashlib.sha256(b"7:photo").hexdigest()[:16], 16) / 2**64  # must never change
    assert 0 <= draw(0, "\udcff") < 1  # a name that is not UTF-8


@pytest.mark.parametrize("names", [("Train", "Validation"), ("TRAINING", "dev"), ("train", "valid"), ("train2017", "val2017")])
@pytest.mark.parametrize("pattern", ["{split}", "images/{split}", "{split}/images"])
def test_splits_have_many_names(tmp_path, names, pattern, proposed):
    for name, shots in zip(names, (SHOTS[:7], SHOTS[7:]), strict=True):
        photos(tmp_path / "mine" / pattern.format(split=name), shots)
        xmls(tmp_path / "mine" / pattern.format(split=name), shots)
    assert numbers_of(load(tmp_path / "mine", "train")) == set(range(7))
    assert numbers_of(load(tmp_path / "mine", "val")) == {7, 8, 9}
    assert "7 photos to train on, 3 to evaluate on" in proposed(tmp_path / "mine")


@pytest.mark.parametrize("names", [("Test",), ("test", "val"), ("testing",)])
def test_test_photos_are_never_trained_on(tmp_path, names, proposed):
    for name in names:
        photos(tmp_path / "mine" / name, SHOTS)
        texts(tmp_path / "mine" / name, SHOTS)
    write(tmp_path / "mine/classes.txt", "\n".join(NAMES))
    assert "but no pair for training and evaluation" in proposed(tmp_path / "mine", code=2)
    with pytest.raises(DataError, match=r"val_fraction needs a folder without its own splits; available:"):
        load(tmp_path / "mine", "train", val_fraction=0.2)


def test_an_ambiguous_split_is_refused(tmp_path):
    for name in ("train2014", "train2017"):
        photos(tmp_path / "mine" / name, SHOTS[:2])
        dump(tmp_path / f"mine/annotations/instances_{name}.json", coco(SHOTS[:2]))
    with pytest.raises(DataError, match="split train is ambiguous: train2014, train2017; name one"):
        load(tmp_path / "mine", "train")
    assert len(load(tmp_path / "mine", "train2017").photos) == 2


@pytest.mark.parametrize("count", [2, 3, 5])
def test_each_part_gets_at_least_one_photo(tmp_path, count):
    photos(tmp_path / "mine/images", SHOTS[1 : count + 1])
    xmls(tmp_path / "mine/annots", SHOTS[1 : count + 1])
    for seed in range(20):
        parts = [numbers_of(load(tmp_path / "mine", split, val_fraction=0.2, seed=seed)) for split in ("train", "val")]
        assert all(parts)
        assert not parts[0] & parts[1]
        assert parts[0] | parts[1] == set(range(1, count + 1))


def test_a_single_photo_is_not_divided(tmp_path):
    photos(tmp_path / "mine/images", SHOTS[:1])
    xmls(tmp_path / "mine/annots", SHOTS[:1])
    with pytest.raises(DataError, match="one photo cannot be divided"):
        load(tmp_path / "mine", "val", val_fraction=0.2)


def test_a_folder_without_splits_is_divided_by_a_fraction(tmp_path):
    make_folder(tmp_path / "one", {f"p{i:03d}": xml() for i in range(60)})

    def ids(split: str, seed: int = 0) -> set[str]:
        photos = load(tmp_path / "one", split, val_fraction=0.25, seed=seed).photos
        return {photos.path(i) for i in range(len(photos))}

    assert ids("train") | ids("val") == {str(path) for path in (tmp_path / "one/JPEGImages").iterdir()}
    assert not ids("train") & ids("val")
    assert 5 <= len(ids("val")) <= 25
    assert ids("val") == ids("val")
    assert ids("val") != ids("val", seed=1)


def test_a_thousand_classes_are_divided_within_seconds():
    rng, count = np.random.default_rng(0), 5000
    objects = np.zeros((count, 1000))
    np.add.at(objects, (np.arange(3 * count) // 3, (rng.pareto(0.7, 3 * count) * 2).astype(int) % 1000), 1)
    start = time.process_time()
    is_val = divide([str(number) for number in range(count)], np.arange(count), objects, 0.2, 0)
    assert time.process_time() - start < 10  # it took a minute when each move looked at each class of each group
    assert 0.15 < is_val.mean() < 0.3
    in_several = (objects > 0).sum(axis=0) > 1
    assert all(objects[side][:, in_several].any(axis=0).all() for side in (is_val, ~is_val))


def random_photos(count: int, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return names, groups of one to four, and objects of a frequent and a rare class."""
    generator = np.random.default_rng(seed)
    groups = np.repeat(np.arange(count), generator.integers(1, 5, count))[:count]
    objects = np.column_stack([generator.integers(0, 6, count), generator.random(count) < 0.1]).astype(float)
    return [f"p{i}" for i in generator.permutation(count)], groups, objects


def test_each_photo_is_in_one_fold_with_its_group():
    for num_folds in (2, 3, 5, 10):
        names, groups, objects = random_photos(200)
        folds = make_folds(names, groups, objects, num_folds, 0)
        assert set(folds.tolist()) == set(range(num_folds))
        for group in set(groups.tolist()):
            assert len(set(folds[groups == group].tolist())) == 1
        sizes = np.bincount(folds)
        assert sizes.max() - sizes.min() <= 8  # two groups
        assert np.bincount(folds, objects[:, 0]).max() < 1.3 * objects[:, 0].sum() / num_folds
        assert np.bincount(folds, objects[:, 1]).min() >= objects[:, 1].sum() // num_folds - 1
        np.testing.assert_array_equal(folds, make_folds(names, groups, objects, num_folds, 0))
        order = np.random.default_rng(1).permutation(200)
        shuffled = make_folds([names[i] for i in order], groups[order], objects[order], num_folds, 0)
        np.testing.assert_array_equal(shuffled, folds[order])
    assert (make_folds(names, groups, objects, 5, 0) != make_folds(names, groups, objects, 5, 1)).any()


def test_folds_of_equal_photos_are_equal_in_size():
    folds = make_folds([f"p{i}" for i in range(40)], np.arange(40), np.ones((40, 1)), 5, 3)
    assert np.bincount(folds).tolist() == [8] * 5


def test_as_many_groups_as_folds_are_needed():
    names, objects = list("abcdef"), np.zeros((6, 2))
    assert sorted(make_folds(names, np.array([4, 4, 4, 4, 4, 7]), objects, 2, 0).tolist()) in ([0] * 5 + [1], [0] + [1] * 5)
    with pytest.raises(ValueError, match="only 2 groups"):
        make_folds(names, np.array([4, 4, 4, 4, 4, 7]), objects, 3, 0)
