"""Files that a source may name in place of its folder: COCO's JSON file and YOLO's data.yaml."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data.dataset.errors import DataError
from data.dataset.names import spelled_on_disk
from ssd.config.yaml import parse_as_written

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
FORMATS = {".json": "coco", ".yaml": "yolo", ".yml": "yolo"}  # of the files that can be named
SPLIT_KEYS = ("train", "val", "test")  # entries of data.yaml that name each split's photos
NULLS = ("", "~", "null", "Null", "NULL")  # YAML's, since values are kept as written


def format_of_file(path: Path) -> str | None:
    """Return the format of a file that stands for its folder; None for a folder and for any other file."""
    return FORMATS.get(path.suffix.lower()) if path.is_file() else None


def base_folder(path: Path) -> Path:
    """Return a source's folder, given that folder or the file that stands for it.

    Raises:
        DataError: the file does not stand for a folder, or its `path` does not exist.
    """
    if not path.is_file():
        return path
    if path.suffix.lower() in ARCHIVES:
        raise DataError(f"{path}: is an archive; unpack it, and name the folder with its files")
    file_format = format_of_file(path)
    if file_format is None:
        raise DataError(
            f"{path}: is a file; name the folder with the photos and annotations, or COCO's JSON file, or YOLO's data.yaml"
        )
    return path.parent if file_format == "coco" else _base_of_data_yaml(path)


def _base_of_data_yaml(path: Path) -> Path:
    """Return the folder that the `path` of a data.yaml names, relative to its own folder or to the working directory.

    Without `path`, return the file's own folder.

    Raises:
        DataError: it is not a data.yaml, or its `path` does not exist.
    """
    content = read_data_yaml(path)
    if "names" not in content:
        raise DataError(
            f"{path}: is not a data.yaml of YOLO, since it has no names; name the folder with the photos and labels"
        )
    base = next(iter(paths_in(content, "path")), "")
    entries = [entry for key in SPLIT_KEYS for entry in paths_in(content, key)]
    candidates = map(spelled_on_disk, (path.parent / os.path.expanduser(base), Path(base).absolute()))
    folders = [folder for folder in candidates if folder.is_dir()]
    for folder in folders or [path.parent]:  # if `path` does not exist, the file may have been moved with its photos
        places = [spelled_on_disk(Path(os.path.abspath(folder / entry))) for entry in entries]
        existing = [place for place in places if place.exists()]
        if existing:
            inside = all(place.is_relative_to(folder.absolute()) for place in existing)
            return folder if inside else _common_base(existing)
    if not folders:
        raise DataError(f"{path}: path: {base}: no such folder, from {path.parent} or from {Path.cwd()}; fix the entry")
    return folders[0]


def _common_base(places: Sequence[Path]) -> Path:
    """Return the folder above the photos' folders. YOLO's tools look for `labels` beside `images`, so it holds both."""
    common = Path(os.path.commonpath([place.parent if place.is_file() else place for place in places]))
    return next((folder.parent for folder in (common, *common.parents) if folder.name == "images"), common)


def read_data_yaml(path: Path) -> dict[str, Any]:
    """Read a data.yaml with every scalar as written; empty if it is not a mapping.

    Raises:
        DataError: it cannot be read.
    """
    try:
        content = parse_as_written(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    return content if isinstance(content, dict) else {}


def paths_in(content: Mapping[str, Any], key: str) -> list[str]:
    """Return the folders or lists that an entry of data.yaml names."""
    value = content.get(key)
    values = value if isinstance(value, list) else [value]
    return [each.strip().replace("\\", "/") for each in values if isinstance(each, str) and each.strip() not in NULLS]
