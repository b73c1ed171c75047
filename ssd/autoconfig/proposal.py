"""A configuration for a folder of photos with boxes: what is in it, and what fits it and the machine."""

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from data.dataset.annotation_loader import LoadedAnnotations, load_annotations
from data.dataset.annotations import Annotations, shared_warning
from data.dataset.class_names import similar_classes
from data.dataset.coverage import all_boxes, best_overlaps
from data.dataset.entry import WARNING, prefix_note
from data.dataset.errors import DataError
from data.dataset.names import spelled_on_disk
from data.dataset.parallel_reader import ProgressCallback
from data.dataset.source_cache import FolderDigest
from data.dataset.splits import choose
from data.layouts.find import FILE_SUFFIXES, find_format, unknown_format_help
from data.layouts.tree import list_tree
from data.loading.image_cache import cache_bytes
from data.loading.loader import choose_workers
from data.loading.workers import num_caches
from ssd.autoconfig.dbox_fit import Sizes, coverage, fit, objects_of
from ssd.autoconfig.recipes import FITTED, OWN_DBOXES, Length, Recipe, Setting, batch_size, choose_dboxes, network, training
from ssd.autoconfig.starts import Budget, StartPlan, choose_start, more_time
from ssd.autoconfig.timing import Timings
from ssd.autoconfig.trial import try_out
from ssd.config.entries import top_entry
from ssd.config.file import parse_config
from ssd.config.schema import ConfigError, SourceConfig, TilesConfig
from ssd.config.yaml import dump_yaml, parse_yaml
from ssd.dbox import DBOX_SPECS, DBoxSpec, make_dbox_list, spec_of
from ssd.preprocessing import IMAGENET
from ssd.system.distributed import World
from ssd.system.errors import UsageError
from ssd.system.machine import num_cores
from ssd.system.memory import free_memory
from ssd.training.datasets import MAX_FAULTS, Data, first_faults, left_out
from ssd.training.run_log import duration

MANY_SMALL = 0.25  # share of the objects, from which on it is told that tiles would help
MEMORY_SHARE = 0.25  # of the free memory, that decoded photos may take
WIDTH = 128  # columns of a line of YAML


class Proposal(NamedTuple):
    """A configuration, and what there is to say of it."""

    text: str
    summary: str


def propose(folder: Path, name: str, wish: Budget, start: float) -> Proposal:
    """A configuration for a folder, by what is in it and what the machine does in some seconds.

    Args:
        folder: the photos with their annotations.
        name: of the configuration.
        wish: what the run may take.
        start: seconds that a command takes until it looks at the photos.

    Raises:
        DataError: the format is unknown, something in it cannot be used, or no object is left for one split.
        UsageError: it holds no objects.
    """
    folder = spelled_on_disk(folder)
    kind, layout = find_format(folder)
    with bar("counting objects", "file") as watch:
        counts = layout.class_counts(num_cores(), watch)
    root, path = place(folder)
    digests: dict[Path, FolderDigest] = {}
    if not counts:
        if list_tree(folder, FILE_SUFFIXES).photos and layout.num_annotated() > 0.5:  # then the reader knows better
            for source in choose(folder, layout.splits()):
                read(root, {"path": path, **source}, [], digests, damaged="refuse")
        hint = unknown_format_help(list_tree(folder, FILE_SUFFIXES))
        raise UsageError(f"{folder}: no object was found in it, read as {kind.upper()}. {hint}")
    require_class_names(folder, counts)
    sources = choose(folder, layout.splits())
    loaded = [read(root, {"path": path, **source}, list(counts), digests) for source in sources]
    train, val = (part.photos for part in loaded)
    train.require_objects("photos to train on", with_difficult=True)
    val.require_objects("photos to evaluate on", with_difficult=False)
    shares = dbox_shares(train)
    fitted = fitted_dboxes(train, shares)
    if fitted:
        shares[FITTED] = coverage(fitted, objects_of(all_boxes(train), train.labels))
    found = {
        "output_dir": Setting(f"runs/{name}"),
        "data.classes": Setting(list(counts)),
        "data.root": Setting(root),
        "data.train": Setting([{"path": path, **sources[0]}]),
        "data.val": Setting([{"path": path, **sources[1]}]),
        **cache_choice(train, wish.device),
        **damaged_choice(*loaded),
    }

    def measured(recipe: Recipe) -> Timings:
        print(f"timing some steps of the network ({recipe.name})", flush=True)
        trial, freeze = trial_choices(recipe, wish.device, len(train))
        return try_out(parse_config(parse_yaml(render({**found, **trial}), top_entry())), freeze, Data(train, val, []), start)

    chosen = choose_start(wish, len(train), measured)
    choices = {**found, **run_choices(chosen, wish.device, len(train), len(val), shares)}
    dboxes, why = choices["model.dboxes"]
    taken = fitted if fitted and dboxes == FITTED else dboxes
    if isinstance(taken, Sizes):
        choices["model.dboxes"] = Setting(taken.to_plain(), why)
    head = f"# {folder.name}: {len(counts)} classes, {len(train)} photos to train on; written by scripts/new_config.py.\n"
    notes = (*notes_of(loaded), *similar_classes(counts), *elsewhere(train, val), *tiles_note(train, spec_of(taken)))
    summary = [
        *first_faults(left_out(loaded), MAX_FAULTS),
        *shared_warning(train, val),
        *([chosen.timings.warning] if chosen.timings.warning else []),
        *(note if note.startswith(WARNING) else f"note: {note}" for note in notes),
        f"{folder}: {kind.upper()} layout, {len(train)} photos to train on, {len(val)} to evaluate on",
        f"classes: {', '.join(f'{each} ({count})' for each, count in counts.items())}",
        f"DBoxes: {dboxes}, which cover {shares[dboxes]:.1%} of the objects, as a mean over the classes",
        told(chosen, wish, len(train)),
    ]
    return Proposal(
        f"{head}# What differs from the defaults; docs/configuration.md has every entry.\n{render(choices)}", "\n".join(summary)
    )


def require_class_names(folder: Path, counts: Mapping[str, int]) -> None:
    """
    Raises:
        DataError: a configuration cannot have one of the names.
    """
    for name, count in counts.items():
        try:
            parse_config({"data": {"classes": [name], "train": [{"path": "-"}], "val": [{"path": "-"}]}})
        except ConfigError as error:
            reason = str(error).rpartition(": ")[2]
            told = f"class {name!r}, of {count} object(s): {reason}; rename it in the annotations"
            raise DataError(f"{folder}: {told}") from None


def elsewhere(train: Annotations, val: Annotations) -> Iterator[str]:
    """A note of the classes that other splits alone have objects of."""
    present = {*train.labels.tolist(), *val.labels.tolist()}
    absent = [name for label, name in enumerate(train.classes) if label not in present]
    if absent:
        yield f"no object of class {', '.join(absent)} is in data.train or data.val, but in another split alone"


def notes_of(loaded: list[LoadedAnnotations]) -> list[str]:
    """What was mended or left out, each note once, with the splits that it is true of."""
    parts: dict[str, list[str]] = {}
    for name, part in zip(("data.train", "data.val"), loaded, strict=True):
        for note in part.notes:
            parts.setdefault(note, []).append(name)
    return [prefix_note(" and ".join(names), note) for note, names in parts.items()]


def told(start: StartPlan, wish: Budget, num_photos: int) -> str:
    """What was chosen to start from and how long the run is going to be, for the user."""
    planned, size = start.length, batch_size(wish.device, num_photos)
    epochs = f"{planned.epochs} epochs" if planned.epochs else "less than an epoch"
    lines = [
        *start.notes,
        f"start: {start.recipe.name}; {start.why}",
        f"length: {epochs}, {planned.iterations:,} iterations of {size} photos, {start.timings.step:.2f} s each here: about "
        f"{duration(planned.seconds)} in all; {more_time(start, wish, num_photos)}",
    ]
    if planned.seconds > 60 * wish.minutes:
        lines.append(f"warning: that is more than {wish.minutes:g} minutes, too few for start, evaluation and end of a run")
    return "\n".join(lines)


@contextmanager
def bar(what: str, unit: str) -> Iterator[ProgressCallback]:
    """What draws a bar on a terminal, and nothing into a file."""
    with tqdm(desc=what, unit=unit, disable=None, leave=False) as drawn:

        def watch(done: int, total: int) -> None:
            drawn.total = total
            drawn.update(done - drawn.n)

        yield watch


def read(
    root: str,
    source: dict[str, Any],
    classes: list[str],
    digests: dict[Path, FolderDigest],
    damaged: Literal["refuse", "skip"] = "skip",
) -> LoadedAnnotations:
    """The photos of one split, every one of them looked at."""
    with bar(f"reading {source['split']}", "photo") as watch:
        sources = [SourceConfig(**source)]
        try:
            return load_annotations(
                sources, root, classes, workers=num_cores(), progress=watch, damaged=damaged, digests=digests
            )
        except DataError as error:
            raise DataError("\n".join(first_faults(str(error).splitlines(), MAX_FAULTS))) from None


def place(folder: Path) -> tuple[str, str]:
    """data.root and path: relative where the folder lies below the current one."""
    full = folder.resolve()
    here = Path.cwd().resolve()
    parent = full.parent
    return str(parent.relative_to(here) if parent.is_relative_to(here) else parent), full.name


def dbox_shares(photos: Annotations) -> dict[str, float]:
    """The share of the objects that each kind of DBoxes covers at overlap 0.5; the mean over the classes, as mAP is one."""
    counts = np.bincount(photos.labels)
    present = counts > 0

    def share(spec: DBoxSpec) -> float:
        covered = best_overlaps(photos, make_dbox_list(spec)) >= 0.5
        return float((np.bincount(photos.labels, covered)[present] / counts[present]).mean())

    return {name: share(spec) for name, spec in DBOX_SPECS.items()}


def fitted_dboxes(photos: Annotations, shares: dict[str, float]) -> Sizes | None:
    """DBoxes that are made for the objects; None where those with names leave too little to gain."""
    if max(shares.values()) + OWN_DBOXES >= 1:
        return None
    return fit(objects_of(all_boxes(photos), photos.labels))


def tiles_note(photos: Annotations, spec: DBoxSpec) -> list[str]:
    """A line where many objects of large photos are smaller than every DBox."""
    smallest, size = spec.maps[0].min_size, TilesConfig().size
    boxes = all_boxes(photos) * spec.image_size
    is_small = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) < smallest**2
    is_large = np.repeat((photos.sizes > size).any(axis=1), np.diff(photos.starts))
    share = float((is_small & is_large).mean())
    if share < MANY_SMALL:
        return []
    return [
        f"{share:.0%} of the objects are smaller than the smallest DBox ({smallest:g} of {spec.image_size} pixels), in photos "
        f"of more than {size}; data.tiles would show them larger, see docs/small_objects.md"
    ]


def cache_choice(photos: Annotations, device: str) -> dict[str, Setting]:
    """Whether decoded photos are kept in memory."""
    size = cache_bytes(photos.sizes, IMAGENET.size) * num_caches(choose_workers("auto", torch.device(device), World()))
    if size > MEMORY_SHARE * free_memory():
        return {}
    return {"data.cache": Setting("ram", f"decoded once; all of them take {size / 2**30:.1f} GiB")}


def damaged_choice(train: LoadedAnnotations, val: LoadedAnnotations) -> dict[str, Setting]:
    """Whether damaged photos are left out."""
    if not train.num_damaged + val.num_damaged:
        return {}
    return {
        "data.damaged": Setting("skip", f"{train.num_damaged} to train on, {val.num_damaged} to evaluate on cannot be read")
    }


def run_choices(
    start: StartPlan, device: str, num_photos: int, num_val_photos: int, shares: dict[str, float]
) -> dict[str, Setting]:
    """Network, loss, length and evaluations.

    Args:
        start: what was chosen to start from.
        device: cpu or cuda.
        num_photos: to train on.
        num_val_photos: to evaluate on.
        shares: of the objects, that each kind of DBoxes covers.
    """
    model = network(start.recipe, device, num_photos)
    return {
        **model,
        "model.pretrained": Setting(model["model.pretrained"].value, start.why),
        "model.dboxes": choose_dboxes(shares, start.recipe.dboxes),
        "loss.min_neg": Setting(3, "photos without objects teach too: what is none"),
        **training(start.recipe, start.length, device, num_photos, num_val_photos),
    }


def trial_choices(recipe: Recipe, device: str, num_photos: int) -> tuple[dict[str, Setting], str | None]:
    """The same for a trial without weights, and the last layer that is frozen."""
    choices = {**network(recipe, device, num_photos), "model.pretrained": Setting("none")}
    freeze = choices.pop("model.freeze", Setting(None)).value
    return {**choices, **training(recipe, Length(1000, 1, 1, 0.0, 0), device, num_photos, 0)}, freeze


def render(choices: dict[str, Setting]) -> str:
    """The YAML of choices by dotted name, those of a section one after the other; each with its reason behind it."""
    lines = []
    current = ""
    for name, (value, reason) in choices.items():
        section, _, key = name.rpartition(".")
        if section != current:
            lines.append(f"{section}:")
            current = section
        indent = "  " if section else ""
        line = f"{indent}{key}: {dump_yaml(value, in_line=True)}"
        if len(line) > WIDTH:
            line = textwrap.indent(dump_yaml({key: value}), indent).rstrip()
        lines.append(f"{line:<27} # {reason}" if reason else line)
    return "\n".join(lines) + "\n"
