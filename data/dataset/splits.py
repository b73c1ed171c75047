"""Which photos are trained on and which are evaluated on: splits by their usual names, and the division of what has none."""

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from data.dataset.annotation import DataError
from data.dataset.listing import composed
from ssd.config.schema import SourceConfig

ROLES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
    "trainval": ("trainval",),
    "all": ("all", "default"),
}
ROLE_OF = {name: role for role, names in ROLES.items() for name in names}
PAIRS = (("train", "val"), ("trainval", "test"), ("train", "test"))  # what to train and to evaluate on, the likeliest first
TRAINED_ON = ("trainval", "train", "all")  # roles of a split that may be divided
VAL_FRACTION = 0.2


@cache
def words(name: str) -> tuple[str, ...]:
    """The words of a name, in lower case: `Train_Images` has two."""
    return tuple(re.findall(r"[^\W_]+", name.casefold()))


@cache
def role(name: str) -> str:
    """What a split is for by its name, whatever its case and a year behind it (train2017, Validation); empty for others."""
    found = re.fullmatch(r"([a-z]+?)(?:[ _-]?(?:19|20)\d\d|\d\d)?", name.casefold())
    return ROLE_OF.get(found[1], "") if found else ""


def choose(folder: Path, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What to train on and what to evaluate on, as entries of a source.

    Args:
        folder: the data set.
        names: of its splits.

    Raises:
        DataError: it has splits, but none to train on, so that dividing the folder could take test photos for training.
    """
    for one, other in PAIRS:
        pairs = [(a, b) for a in names for b in names if role(a) == one and role(b) == other]
        if pairs:
            # Of train2014, train2017, val2014 and val2017 the latest that go together.
            years = [re.sub(r"\D", "", a) == re.sub(r"\D", "", b) for a, b in pairs]
            train, val = max(zip(years, pairs, strict=True))[1]
            return {"split": train}, {"split": val}
    if names and not divisible(names):
        raise DataError(
            f"{folder}: has the splits {', '.join(names)}, but no pair to train and to evaluate on (train and val, say); "
            "rename them, or name them in data.train and data.val"
        )
    return {"split": "train", "val_fraction": VAL_FRACTION}, {"split": "val", "val_fraction": VAL_FRACTION}


def divisible(names: Sequence[str]) -> list[str]:
    """The split that may be divided, the first of several: there has to be one to train on, and none to evaluate on."""
    roles = {role(name): name for name in names}
    if "val" in roles or "test" in roles:
        return []
    return [roles[each] for each in TRAINED_ON if each in roles][:1]


def find_split(folder: Path, source: SourceConfig, names: Sequence[str]) -> str | None:
    """Which of a folder's splits a source means; None for the whole folder.

    Raises:
        DataError: there is none of that name, or the folder has splits and is to be divided.
    """
    listed = f"there are: {', '.join(names)}"
    if source.val_fraction is not None:
        if source.split not in ("train", "val"):
            raise DataError(f"{folder}: val_fraction goes with split train or val of a folder without splits of its own")
        if names and not divisible(names):
            raise DataError(f"{folder}: val_fraction goes with a folder without splits of its own; {listed}")
        return divisible(names)[0] if names else None
    wanted = composed(source.split)
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
            raise DataError(f"{folder}: split {wanted} may be any of {', '.join(found)}; name one of them")
    if wanted == "all":
        return None
    hint = listed if names else "set split: all, or val_fraction to split the folder"
    raise DataError(f"{folder}: no such split: {wanted}; {hint}")


def divide(names: list[str], folder: Path, source: SourceConfig, seed: int) -> set[str]:
    """The train or val part of a data set without splits. A hash of its name decides on each photo, so that neither the order
    of the others nor a change to them moves it across. Of two photos and more, each part has at least one.

    Raises:
        DataError: there is only one photo.
    """
    assert source.val_fraction is not None
    draws = {name: draw(seed, name) for name in names}
    if len(draws) < 2:
        raise DataError(f"{folder}: one photo cannot be divided into train and val; add more")
    val = {name for name, drawn in draws.items() if drawn < source.val_fraction}
    if not val:
        val = {min(draws, key=lambda name: draws[name])}
    if len(val) == len(draws):
        val.remove(max(draws, key=lambda name: draws[name]))
    return val if source.split == "val" else set(draws) - val


def draw(seed: int, name: str) -> float:
    """A number in 0..1 that depends on seed and name alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode(errors="surrogateescape")).digest()[:8], "big") / 2**64
