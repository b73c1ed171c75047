"""Files that stand for a data set: COCO's JSON file and YOLO's data.yaml, named in place of a folder."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data.dataset.annotation import DataError
from data.dataset.listing import spelt
from ssd.config.yaml import parse_as_written

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
LAYOUTS = {".json": "coco", ".yaml": "yolo", ".yml": "yolo"}  # of the files that may be named
ENTRIES = ("train", "val", "test")  # of data.yaml: where the photos of each split are
NULLS = ("", "~", "null", "Null", "NULL")  # YAML's, which are read as they are written


def layout_named(path: Path) -> str | None:
    """The layout that a file stands for by its suffix; None of a folder, and of any other file."""
    return LAYOUTS.get(path.suffix.lower()) if path.is_file() else None


def base_of(path: Path) -> Path:
    """The folder with the files of a data set that is named by its folder or by a file.

    Raises:
        DataError: a file is named that stands for none, or its `path` leads nowhere.
    """
    if not path.is_file():
        return path
    if path.suffix.lower() in ARCHIVES:
        raise DataError(f"{path}: is an archive; unpack it, and name the folder with its files")
    layout = layout_named(path)
    if layout is None:
        raise DataError(
            f"{path}: is a file; name the folder of the data set (the photos and their annotations), or COCO's JSON file, or "
            "YOLO's data.yaml"
        )
    return path.parent if layout == "coco" else _base_of_settings(path)


def _base_of_settings(path: Path) -> Path:
    """Where the `path` of a data.yaml leads, from its own folder or from the working directory; without one, its folder.

    Raises:
        DataError: it is no data.yaml, or its `path` leads nowhere.
    """
    content = read_settings(path)
    if "names" not in content:
        raise DataError(f"{path}: is no data.yaml of YOLO, as it has no names; name the folder of the data set")
    base = next(iter(places_in(content, "path")), "")
    entries = [place for name in ENTRIES for place in places_in(content, name)]
    folders = map(spelt, (path.parent / os.path.expanduser(base), Path(base).absolute()))
    meant = [folder for folder in folders if folder.is_dir()]
    for folder in meant or [path.parent]:  # where `path` leads nowhere, it may have been moved together with its photos
        places = [spelt(Path(os.path.abspath(folder / entry))) for entry in entries]
        there = [place for place in places if place.exists()]
        if there:
            inside = all(place.is_relative_to(folder.absolute()) for place in there)
            return folder if inside else _around(there)
    if not meant:
        raise DataError(f"{path}: path: {base}: no such folder, from {path.parent} or from {Path.cwd()}; mend the entry")
    return meant[0]


def _around(places: Sequence[Path]) -> Path:
    """The folder that holds photos and labels, by where the photos are: YOLO's tools look for `labels` beside `images`."""
    common = Path(os.path.commonpath([place.parent if place.is_file() else place for place in places]))
    return next((folder.parent for folder in (common, *common.parents) if folder.name == "images"), common)


def read_settings(path: Path) -> dict[str, Any]:
    """The content of a data.yaml, with every scalar as it is written; empty where it is no mapping.

    Raises:
        DataError: it cannot be read.
    """
    try:
        content = parse_as_written(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    return content if isinstance(content, dict) else {}


def places_in(content: Mapping[str, Any], name: str) -> list[str]:
    """The folders or lists that an entry of data.yaml names."""
    value = content.get(name)
    values = value if isinstance(value, list) else [value]
    return [each.strip().replace("\\", "/") for each in values if isinstance(each, str) and each.strip() not in NULLS]
