"""Splits: their usual names, which to train and evaluate on, and how to split a folder that has none."""

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset.errors import DataError
from data.dataset.names import nfc
from ssd.config.schema import SourceConfig

ROLES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
    "trainval": ("trainval",),
    "all": ("all", "default"),
}
ROLE_OF = {name: role for role, names in ROLES.items() for name in names}
PAIRS = (("train", "val"), ("trainval", "test"), ("train", "test"))  # to train and to evaluate on, in order of preference
DIVISIBLE = ("trainval", "train", "all")  # roles of a split that may be divided, in order of preference
VAL_FRACTION = 0.2


@cache
def words(name: str) -> tuple[str, ...]:
    """Return the words of a name in lower case: `Train_Images` has two."""
    return tuple(re.findall(r"[^\W_]+", name.casefold()))


@cache
def role(name: str) -> str:
    """Return a split's role from its name, ignoring case and a year (train2017, Validation); empty if it has none."""
    found = re.fullmatch(r"([a-z]+?)(?:[ _-]?(?:19|20)\d\d|\d\d)?", name.casefold())
    return ROLE_OF.get(found[1], "") if found else ""


def choose(folder: Path, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Choose what to train and what to evaluate on, as entries of a source.

    Args:
        folder: of the source.
        names: of its splits.

    Raises:
        DataError: the splits do not say what to train on, and dividing the folder could train on test photos.
    """
    for one, other in PAIRS:
        pairs = [(a, b) for a in names for b in names if role(a) == one and role(b) == other]
        if pairs:
            # Prefer equal years, then the latest: of train2014, train2017, val2014 and val2017 those of 2017.
            years = [re.sub(r"\D", "", a) == re.sub(r"\D", "", b) for a, b in pairs]
            train, val = max(zip(years, pairs, strict=True))[1]
            return {"split": train}, {"split": val}
    if names and not divisible(names):
        raise DataError(
            f"{folder}: has the splits {', '.join(names)}, but no pair for training and evaluation (such as train and val); "
            "rename them, or name them in data.train and data.val"
        )
    return {"split": "train", "val_fraction": VAL_FRACTION}, {"split": "val", "val_fraction": VAL_FRACTION}


def divisible(names: Sequence[str]) -> list[str]:
    """Return the one split that may be divided, if any. With a val or test split, none may be."""
    roles = {role(name): name for name in names}
    if "val" in roles or "test" in roles:
        return []
    return [roles[each] for each in DIVISIBLE if each in roles][:1]


def find_split(folder: Path, source: SourceConfig, names: Sequence[str]) -> str | None:
    """Return the split that a source names; None for the whole folder.

    Raises:
        DataError: there is no such split, or a folder with splits would have to be divided.
    """
    available = f"available: {', '.join(names)}"
    if source.val_fraction is not None:
        if source.split not in ("train", "val"):
            raise DataError(f"{folder}: val_fraction needs split train or val, and a folder without its own splits")
        if names and not divisible(names):
            raise DataError(f"{folder}: val_fraction needs a folder without its own splits; {available}")
        return divisible(names)[0] if names else None
    wanted = nfc(source.split)
    tests: tuple[Callable[[str], bool], ...] = (
        lambda name: name == wanted,
        lambda name: name.casefold() == wanted.casefold(),
        lambda name: bool(role(name)) and role(name) == role(wanted),
    )
    for fits in tests:
        found = [name for name in names if fits(name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(f"{folder}: split {wanted} is ambiguous: {', '.join(found)}; name one of them")
    if wanted == "all":
        return None
    hint = available if names else "set split: all, or val_fraction to split the folder"
    raise DataError(f"{folder}: no such split: {wanted}; {hint}")


def divide(names: Sequence[str], groups: np.ndarray, objects: np.ndarray | None, fraction: float, seed: int) -> np.ndarray:
    """Choose the photos to evaluate on, group by group.

    A hash of its first photo's name decides where a group goes, so adding, removing or reordering others does not move it. Only
    if some class, or the photos themselves, are divided very unevenly do groups change sides, those of the nearest hash first.

    Args:
        names: `[n]`, distinct, of the photos.
        groups: `[n]` int64, the group of each photo; photos of one group stay together.
        objects: `[n, C]`, the objects of each class that count in an evaluation; None to let the hash alone decide.
        fraction: share of the photos, and of the objects of each class, to evaluate on.
        seed: of the hash.

    Returns:
        Whether each photo is for evaluation `[n]`; both parts have at least one.

    Raises:
        ValueError: there is only one group.
    """
    rows, draws = _draw_groups(names, groups, seed)
    if len(draws) < 2:
        raise ValueError("there is only one group")
    is_val = draws < fraction
    if not is_val.any():
        is_val[draws.argmin()] = True
    if is_val.all():
        is_val[draws.argmax()] = False
    if objects is None:
        return is_val[rows]
    counts = np.zeros((len(draws), objects.shape[1] + 1))
    np.add.at(counts, rows, np.column_stack([objects, np.ones(len(names))]))
    counts = counts[:, counts.any(axis=0)] / counts.sum(axis=0)[counts.any(axis=0)]  # shares of each class, and of all photos
    distance = np.abs(draws - fraction)
    owners, columns = np.nonzero(counts)  # most groups have few classes
    entries = counts[owners, columns]
    shares = is_val @ counts
    cost = _unevenness(shares, fraction).sum()
    while cost > 0:
        moved = _unevenness(shares[columns] + np.where(is_val[owners], -entries, entries), fraction)
        change = moved - _unevenness(shares, fraction)[columns]
        costs = cost + np.bincount(owners, change, minlength=len(draws))
        costs[is_val & (is_val.sum() == 1) | ~is_val & ((~is_val).sum() == 1)] = np.inf
        better = np.flatnonzero(costs <= costs.min() + 1e-9)
        move = better[distance[better].argmin()]
        if costs[move] >= cost - 1e-9:
            break
        is_val[move] ^= True
        shares += counts[move] if is_val[move] else -counts[move]
        cost = costs[move]
    return is_val[rows]


def make_folds(names: Sequence[str], groups: np.ndarray, objects: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Divide photos into folds of similar size with a similar share of each class, group by group.

    Each group, largest first, goes to the fold that has least of what it holds.

    Args:
        names: `[n]` of the photos; their hash orders groups of equal size.
        groups: `[n]` int64, the group of each photo; photos of one group stay together.
        objects: `[n, C]`, the objects of each class that count in an evaluation.
        num_folds: at least 2.
        seed: of the hash.

    Returns:
        The fold of each photo `[n]` int64, from 0; no fold is empty.

    Raises:
        ValueError: there are fewer groups than folds.
    """
    rows, draws = _draw_groups(names, groups, seed)
    if len(draws) < num_folds:
        raise ValueError(f"there are only {len(draws)} groups")
    counts = np.zeros((len(draws), objects.shape[1] + 1))
    np.add.at(counts, rows, np.column_stack([objects, np.ones(len(names))]))
    counts /= np.maximum(counts.sum(axis=0), 1)  # shares of each class, and of all photos
    fold_of = np.zeros(len(draws), np.int64)
    shares = np.zeros((num_folds, counts.shape[1]))
    for row in np.lexsort((draws, -counts.sum(axis=1).round(9))):
        fold_of[row] = (shares @ counts[row]).argmin()
        shares[fold_of[row]] += counts[row]
    return fold_of[rows]


def _draw_groups(names: Sequence[str], groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each photo's row among the distinct groups `[n]`, and a number for each group `[m]`, drawn by its first name."""
    first = {group: name for name, group in sorted(zip(names, groups.tolist(), strict=True), reverse=True)}
    labels, rows = np.unique(groups, return_inverse=True)
    return rows, np.array([draw(seed, first[label]) for label in labels.tolist()])


def _unevenness(shares: np.ndarray, fraction: float) -> np.ndarray:
    """Return by how much each share misses a half to one and a half of a fraction; a missing class counts most."""
    share = np.minimum(fraction, 1 - fraction)
    missing = (shares < 1e-9) | (shares > 1 - 1e-9)
    return np.maximum(np.abs(shares - fraction) - share / 2, 0) + missing


def draw(seed: int, name: str) -> float:
    """Return a number in 0..1 that depends only on seed and name."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode(errors="surrogateescape")).digest()[:8], "big") / 2**64
