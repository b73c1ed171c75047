"""Propose a configuration for a folder of photos with boxes: `scripts/new_config.py` writes it."""

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from tqdm import tqdm

from data.dataset.annotation_loader import LoadedAnnotations, load_annotations
from data.dataset.annotations import Annotations
from data.dataset.class_names import similar_classes
from data.dataset.coverage import all_boxes
from data.dataset.entry import WARNING, prefix_note
from data.dataset.errors import DataError
from data.dataset.groups import mixed_warning
from data.dataset.names import spelled_on_disk
from data.dataset.parallel_reader import ProgressCallback
from data.dataset.source_cache import FolderDigest
from data.dataset.splits import choose
from data.layouts.find import FILE_SUFFIXES, find_format, unknown_format_help
from data.layouts.tree import list_tree
from data.loading.image_cache import cache_bytes
from data.loading.loader import choose_workers
from data.loading.workers import num_caches
from ssd.architecture import ARCHITECTURES, Architecture
from ssd.autoconfig.dbox_fit import Sizes, coverage, objects_of
from ssd.autoconfig.dboxes import FITTED, choose_dboxes, dbox_coverages, fitted_dboxes, tiles_note
from ssd.autoconfig.familiarity import share_recognised
from ssd.autoconfig.recipes import (
    DEFAULT,
    Length,
    Recipe,
    Setting,
    Settings,
    batch_size,
    model_settings,
    train_settings,
)
from ssd.autoconfig.starts import Budget, StartPlan, choose_start, describe_longer_run
from ssd.autoconfig.timing import Timings, try_out
from ssd.config.entries import top_entry
from ssd.config.file import parse_config
from ssd.config.schema import ConfigError, DataConfig, SourceConfig
from ssd.config.yaml import dump_yaml, parse_yaml
from ssd.dbox import spec_of
from ssd.system.distributed import World
from ssd.system.errors import UsageError
from ssd.system.machine import num_cores
from ssd.system.memory import free_memory
from ssd.training.datasets import MAX_FAULTS, Data, first_faults, left_out
from ssd.training.run_log import duration

MEMORY_SHARE = 0.25  # of the free memory that decoded photos may take
WIDTH = 128  # columns of the YAML file
FREE_THREADS = {"train.threads": Setting("free", "other programs were busy during the timing; this adapts to them")}


class Proposal(NamedTuple):
    """A configuration as YAML, and a summary for the user."""

    text: str
    summary: str


class Folder(NamedTuple):
    """A folder of photos with boxes, read and checked."""

    folder: Path
    kind: str  # voc, coco or yolo
    counts: dict[str, int]  # objects of each class
    sources: list[dict[str, Any]]  # data.train and data.val, an item each
    root: str  # data.root
    loaded: list[LoadedAnnotations]  # training and validation photos


def propose(folder: Path, name: str, budget: Budget, start: float) -> Proposal:
    """Propose a configuration that suits a folder and the speed of this machine, which takes some seconds to time.

    `start` is the seconds from the start of the command until now.

    Raises:
        DataError: the dataset format is unknown, something cannot be used, or a split has no objects.
        UsageError: the folder holds no objects.
    """
    data = read_folder(spelled_on_disk(folder))
    train, val = (part.photos for part in data.loaded)

    def of_data(row: Architecture) -> Settings:
        cache = cache_setting(train, budget.device, row.input_size)
        return {**data_settings(data, name), **cache, **damaged_setting(*data.loaded)}

    def measure(recipe: Recipe) -> Timings:
        print(f"timing a few steps of the network ({recipe.label})", flush=True)
        trial, freeze = trial_settings(recipe, budget.device, len(train))
        settings = {**of_data(ARCHITECTURES[recipe.architecture]), **trial}
        return try_out(parse_config(parse_yaml(render(settings), top_entry())), freeze, Data(train, val, []), start)

    def recognise(weights: str) -> float | None:
        print(f"checking whether the {weights} weights recognise the objects", flush=True)
        return share_recognised(train, weights)

    plan = choose_start(budget, len(train), data.counts, measure, recognise)
    row = ARCHITECTURES[plan.recipe.architecture]
    coverages = dbox_coverages(train, row)
    fitted = fitted_dboxes(train, coverages, row)
    if fitted:
        coverages[FITTED] = coverage(fitted, objects_of(all_boxes(train), train.labels, architecture=row))
    settings = of_data(row)
    settings |= run_settings(plan, budget.device, len(train), len(val), coverages)
    dboxes, why = settings["model.dboxes"]
    chosen = fitted if fitted and dboxes == FITTED else dboxes
    if isinstance(chosen, Sizes):
        settings["model.dboxes"] = Setting(chosen.to_plain(), why)
    head = (
        f"# {data.folder.name}: {len(data.counts)} classes, {len(train)} training photos. Written by scripts/new_config.py.\n"
        "# Entries that differ from the defaults; docs/configuration.md lists all of them.\n"
    )
    lines = [
        *summarise_data(data, tiles_note(train, spec_of(chosen, row)), plan.timings.warning),
        f"DBoxes: {dboxes}, covering {coverages[dboxes]:.1%} of the objects (mean over the classes)",
        describe_plan(plan, budget, len(train)),
    ]
    return Proposal(head + render(settings), "\n".join(lines))


def read_folder(folder: Path) -> Folder:
    """Recognise a folder's format, count its objects, and read a training and a validation split.

    Raises:
        DataError, UsageError: as `propose`.
    """
    kind, layout = find_format(folder)
    with progress_bar("counting objects", "file") as watch:
        counts = layout.class_counts(num_cores(), watch)
    root, path = root_and_path(folder)
    digests: dict[Path, FolderDigest] = {}
    if not counts:
        if list_tree(folder, FILE_SUFFIXES).photos and layout.num_annotated() > 0.5:  # a reader that refuses says more
            for source in choose(folder, layout.splits()):
                read_split(root, {"path": path, **source}, [], digests, damaged="refuse")
        hint = unknown_format_help(list_tree(folder, FILE_SUFFIXES))
        raise UsageError(f"{folder}: no object was found in it, read as {kind.upper()}. {hint}")
    require_class_names(folder, counts)
    sources = [{"path": path, **source} for source in choose(folder, layout.splits())]
    loaded = [read_split(root, source, list(counts), digests) for source in sources]
    loaded[0].photos.require_objects("photos to train on", with_difficult=True)
    loaded[1].photos.require_objects("photos to evaluate on", with_difficult=False)
    return Folder(folder, kind, dict(counts), sources, root, loaded)


def require_class_names(folder: Path, counts: Mapping[str, int]) -> None:
    """Check that class names can be used in a configuration.

    Raises:
        DataError: one cannot.
    """
    for name, count in counts.items():
        try:
            parse_config({"data": {"classes": [name], "train": [{"path": "-"}], "val": [{"path": "-"}]}})
        except ConfigError as error:
            reason = str(error).rpartition(": ")[2]
            text = f"class {name!r}, of {count} object(s): {reason}; rename it in the annotations"
            raise DataError(f"{folder}: {text}") from None


def read_split(
    root: str,
    source: dict[str, Any],
    classes: list[str],
    digests: dict[Path, FolderDigest],
    damaged: Literal["refuse", "skip"] = "skip",
) -> LoadedAnnotations:
    """Read one split and check every photo."""
    with progress_bar(f"reading {source['split']}", "photo") as watch:
        sources = (SourceConfig(**source),)
        data = DataConfig.model_construct(classes=tuple(classes), root=root, train=sources, val=sources, damaged=damaged)
        # Of a divided folder, only the training part has the notes.
        part = "val" if source["split"] == "val" and source.get("val_fraction") else "train"
        try:
            return load_annotations(data, part, workers=num_cores(), progress=watch, digests=digests)
        except DataError as error:
            raise DataError("\n".join(first_faults(str(error).splitlines(), MAX_FAULTS))) from None


@contextmanager
def progress_bar(text: str, unit: str) -> Iterator[ProgressCallback]:
    """Yield a function that draws a bar on a terminal, and nothing into a file."""
    with tqdm(desc=text, unit=unit, disable=None, leave=False) as bar:

        def watch(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield watch


def root_and_path(folder: Path) -> tuple[str, str]:
    """Return `data.root` and a path below it; the root is relative if the folder is below the current one."""
    full = folder.resolve()
    here = Path.cwd().resolve()
    parent = full.parent
    return str(parent.relative_to(here) if parent.is_relative_to(here) else parent), full.name


def data_settings(data: Folder, name: str) -> Settings:
    """Return the output folder, the classes and the splits."""
    return {
        "output_dir": Setting(f"runs/{name}"),
        "data.classes": Setting(list(data.counts)),
        "data.root": Setting(data.root),
        "data.train": Setting([data.sources[0]]),
        "data.val": Setting([data.sources[1]]),
    }


def cache_setting(photos: Annotations, device: str, input_size: int) -> Settings:
    """Keep photos, decoded to the network's input size, in memory if they fit."""
    workers = choose_workers("auto", torch.device(device), World())
    size = cache_bytes(photos.sizes, input_size) * num_caches(workers)
    if size > MEMORY_SHARE * free_memory():
        return {}
    return {"data.cache": Setting("ram", f"decodes each photo once; takes {size / 2**30:.1f} GiB")}


def damaged_setting(train: LoadedAnnotations, val: LoadedAnnotations) -> Settings:
    """Skip damaged photos if there are any."""
    num_damaged = train.num_damaged + val.num_damaged
    return {"data.damaged": Setting("skip", f"{num_damaged} photos cannot be read")} if num_damaged else {}


def run_settings(plan: StartPlan, device: str, num_photos: int, num_val_photos: int, coverages: dict[str, float]) -> Settings:
    """Return the entries for network, loss, length and evaluations.

    `coverages` is the share of the objects that each kind of DBoxes covers.
    """
    model = model_settings(plan.recipe, device, num_photos)
    if "model.architecture" in model:
        model["model.architecture"] = Setting(plan.recipe.architecture, plan.why_network)
    return {
        **model,
        "model.pretrained": Setting(model["model.pretrained"].value, plan.why),
        "model.dboxes": choose_dboxes(coverages, plan.recipe.dboxes),
        "loss.min_neg": Setting(3, "learns background from photos without objects, too"),
        **(FREE_THREADS if device == "cpu" and plan.timings.warning else {}),
        **train_settings(plan.recipe, plan.length, device, num_photos, num_val_photos),
    }


def trial_settings(recipe: Recipe, device: str, num_photos: int) -> tuple[Settings, str | None]:
    """Return the entries for a trial with random weights, and the last frozen layer."""
    settings = {**model_settings(recipe, device, num_photos), "model.pretrained": Setting("none")}
    freeze = settings.pop("model.freeze", Setting(None)).value
    threads = FREE_THREADS if device == "cpu" else {}
    return {**settings, **threads, **train_settings(recipe, Length(1000, 1, 1, 0.0, 0), device, num_photos, 0)}, freeze


def render(settings: Settings) -> str:
    """Return the settings as YAML, with each reason as a comment; entries of one section must follow each other."""
    lines = []
    current = ""
    for name, (value, reason) in settings.items():
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


def summarise_data(data: Folder, tiles: list[str], warning: str) -> list[str]:
    """Return lines about the data: what was skipped, warnings, notes, and counts."""
    train, val = (part.photos for part in data.loaded)
    notes = (*dataset_notes(data.loaded), *similar_classes(data.counts), *absent_classes(train, val), *tiles)
    return [
        *first_faults(left_out(data.loaded), MAX_FAULTS),
        *mixed_warning(train, val),
        *([warning] if warning else []),
        *(note if note.startswith(WARNING) else f"note: {note}" for note in notes),
        f"{data.folder}: {data.kind.upper()} layout, {len(train)} photos to train on, {len(val)} to evaluate on",
        f"classes: {', '.join(f'{each} ({count})' for each, count in data.counts.items())}",
    ]


def dataset_notes(loaded: list[LoadedAnnotations]) -> list[str]:
    """Return each reader's note once, with the splits that it applies to."""
    parts: dict[str, list[str]] = {}
    for name, part in zip(("data.train", "data.val"), loaded, strict=True):
        for note in part.notes:
            parts.setdefault(note, []).append(name)
    return [prefix_note(" and ".join(names), note) for note, names in parts.items()]


def absent_classes(train: Annotations, val: Annotations) -> Iterator[str]:
    """Yield a note on classes that have objects in other splits only."""
    present = {*train.labels.tolist(), *val.labels.tolist()}
    absent = [name for label, name in enumerate(train.classes) if label not in present]
    if absent:
        yield f"no object of class {', '.join(absent)} is in data.train or data.val, but in another split alone"


def describe_plan(plan: StartPlan, budget: Budget, num_photos: int) -> str:
    """Return lines about the chosen start and the length of the run."""
    length, size = plan.length, batch_size(plan.recipe, budget.device, num_photos)
    epochs = f"{length.epochs} epochs" if length.epochs else "less than one epoch"
    lines = [
        *plan.notes,
        *([f"network: {plan.recipe.architecture}; {plan.why_network}"] if plan.recipe.architecture != DEFAULT else []),
        f"start: {plan.recipe.name}; {plan.why}",
        f"length: {epochs}, {length.iterations:,} iterations of {size} photos at {plan.timings.step:.2f} s, about "
        f"{duration(length.seconds)} in all; {describe_longer_run(plan, budget, num_photos)}",
    ]
    if length.seconds > 60 * budget.minutes:
        lines.append(f"warning: --minutes {budget.minutes:g} is too short for the start, an evaluation and the end of a run")
    return "\n".join(lines)
