"""A configuration for a folder of photos with boxes: what is in it, and what fits it and the machine."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from data.annotation import DataError, similar_classes
from data.coverage import best_overlaps
from data.image_cache import cache_bytes
from data.inspection import Watch
from data.layouts.find import find_layout, shortage
from data.layouts.tree import list_tree
from data.photos import Loaded, Photos, load_photos
from data.source_cache import Look
from data.splits import choose
from ssd.config import SourceConfig
from ssd.config_yaml import dump_yaml
from ssd.dbox import DBOX_SPECS, make_dbox_list
from ssd.preparation import IMAGENET
from ssd.system.errors import UsageError
from ssd.system.machine import num_cores
from ssd.system.memory import free_memory
from ssd.training.datasets import MAX_FAULTS, first_faults

# Samples that a run sees: a CPU with two cores takes half an hour for its number; on a GPU it is half of the paper's run.
SAMPLES = {"cpu": 25_000, "cuda": 1_920_000}
EPOCHS = {"cpu": (5, 150), "cuda": (20, 240)}  # at least, at most
BATCH_SIZE = {"cpu": 16, "cuda": 32}
EVALUATIONS = 5
MEMORY_SHARE = 0.25  # of the free memory, that decoded photos may take
WIDTH = 128  # columns of a line of YAML


class Choice(NamedTuple):
    """The value of one entry, and why."""

    value: Any
    reason: str = ""


FROM_IMAGENET = {"model.pretrained": Choice("imagenet", "a GPU has time for the whole network")}
FROM_SCRATCH = {
    "model.pretrained": Choice("none", "ImageNet weights fit the whole network only, which is slow on a CPU"),
    "model.batch_norm": Choice(True, "what makes training from scratch work"),
    "model.width": Choice(0.5, "a quarter of the arithmetic"),
}
SHORT_RUN = {
    "train.batch_size": Choice(BATCH_SIZE["cpu"], "more updates from the same photos than with 32"),
    "train.optimizer": Choice("adamw", "from scratch it learns faster than SGD"),
    "train.weight_decay": Choice(0.05, "AdamW's steps do not shrink with the gradient: its decay is larger than SGD's"),
    "train.schedule": Choice("cosine", "a short run ends at a learning rate of 0"),
    "train.clip_grad_norm": Choice(10.0, "the first gradients from scratch are large"),
    "train.ema": Choice(0.998, "averages about 500 iterations"),
}


def propose(folder: Path, name: str, device: str) -> tuple[str, str]:
    """The text of a configuration for a folder, and what was found in it.

    Raises:
        DataError: the folder is of no known layout, something in it cannot be used, or no object is left for one split.
        UsageError: it holds no objects.
    """
    kind, layout = find_layout(folder)
    with bar("counting objects", "file") as watch:
        counts = layout.class_counts(num_cores(), watch)
    if not counts:
        raise UsageError(f"{folder}: no object was found in it, read as {kind.upper()}. {shortage(list_tree(folder))}")
    sources = choose(folder, layout.splits())
    root, path = place(folder)
    looks: dict[Path, Look] = {}
    loaded = [read(root, {"path": path, **source}, list(counts), looks) for source in sources]
    train, val = (part.photos for part in loaded)
    train.require_objects("photos to train on", with_difficult=True)
    val.require_objects("photos to evaluate on", with_difficult=False)
    shares = dbox_shares(train)
    choices = {
        "output_dir": Choice(f"runs/{name}"),
        "data.classes": Choice(list(counts)),
        "data.root": Choice(root),
        "data.train": Choice([{"path": path, **sources[0]}]),
        "data.val": Choice([{"path": path, **sources[1]}]),
        **cache_choice(train),
        **damaged_choice(loaded),
        **run_choices(device, len(train), shares),
    }
    head = f"# {folder.name}: {len(counts)} classes, {len(train)} photos to train on; written by scripts/new_config.py.\n"
    said = dict.fromkeys(note for part in loaded for note in part.notes)
    notes = [f"note: {note}\n" for note in (*said, *similar_classes(counts))]
    dboxes = choices["model.dboxes"].value
    summary = (
        f"{''.join(notes)}{folder}: {kind.upper()} layout, {len(train)} photos to train on, {len(val)} to evaluate on\n"
        f"classes: {', '.join(f'{each} ({count})' for each, count in counts.items())}\n"
        f"DBoxes: {dboxes}, which cover {shares[dboxes]:.1%} of the objects; {choices['train.epochs'].value} epochs of batches "
        f"of {BATCH_SIZE[device]}"
    )
    return f"{head}# What differs from the defaults; docs/configuration.md has every entry.\n{render(choices)}", summary


@contextmanager
def bar(what: str, unit: str) -> Iterator[Watch]:
    """What draws a bar on a terminal, and nothing into a file."""
    with tqdm(desc=what, unit=unit, disable=None, leave=False) as drawn:

        def watch(done: int, total: int) -> None:
            drawn.total = total
            drawn.update(done - drawn.n)

        yield watch


def read(root: str, source: dict[str, Any], classes: list[str], looks: dict[Path, Look]) -> Loaded:
    """The photos of one split, every one of them looked at."""
    with bar(f"reading {source['split']}", "photo") as watch:
        sources = [SourceConfig(**source)]
        try:
            return load_photos(sources, root, classes, workers=num_cores(), watch=watch, damaged="skip", looks=looks)
        except DataError as error:
            raise DataError(first_faults(str(error).splitlines(), MAX_FAULTS)) from None


def place(folder: Path) -> tuple[str, str]:
    """data.root and path: relative where the folder lies below the current one."""
    full = folder.resolve()
    here = Path.cwd().resolve()
    parent = full.parent
    return str(parent.relative_to(here) if parent.is_relative_to(here) else parent), full.name


def dbox_shares(photos: Photos) -> dict[str, float]:
    """The share of the objects that each kind of DBoxes covers at overlap 0.5."""
    return {name: float((best_overlaps(photos, make_dbox_list(spec)) >= 0.5).mean()) for name, spec in DBOX_SPECS.items()}


def choose_dboxes(shares: dict[str, float]) -> str:
    """The kind of DBoxes that covers the objects best; the paper's, where that makes no difference of a percent."""
    return max(shares, key=lambda name: (round(shares[name], 2), name == "voc"))


def cache_choice(photos: Photos) -> dict[str, Choice]:
    """Whether decoded photos are kept in memory."""
    size = cache_bytes(photos.sizes, IMAGENET.size)
    if size > MEMORY_SHARE * free_memory():
        return {}
    return {"data.cache": Choice("ram", f"decoded once; all of them take {size / 2**30:.1f} GiB")}


def damaged_choice(loaded: list[Loaded]) -> dict[str, Choice]:
    """Whether damaged photos are left out."""
    number = sum(part.num_damaged for part in loaded)
    return {"data.damaged": Choice("skip", f"{number} cannot be read")} if number else {}


def run_choices(device: str, num_photos: int, shares: dict[str, float]) -> dict[str, Choice]:
    """Network, length and evaluations.

    Args:
        device: cpu or cuda.
        num_photos: to train on.
        shares: of the objects, that each kind of DBoxes covers.
    """
    batch_size = BATCH_SIZE[device]
    epochs = int(np.clip(round(SAMPLES[device] / num_photos), *EPOCHS[device]))
    iterations = max(1, epochs * num_photos // batch_size)
    every = max(1, iterations // EVALUATIONS)
    covered = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    return {
        **(FROM_SCRATCH if device == "cpu" else FROM_IMAGENET),
        "model.dboxes": Choice(choose_dboxes(shares), f"objects covered at overlap 0.5: {covered}"),
        "train.epochs": Choice(epochs, f"{iterations:,} iterations"),
        "train.warmup": Choice(min(500, iterations // 10), "iterations"),
        **(SHORT_RUN if device == "cpu" else {}),
        "checkpoint.every": Choice(every, "iterations"),
        "checkpoint.keep": Choice(2, "last.pt and best.pt come on top"),
        "eval.every": Choice(every, f"iterations: about {EVALUATIONS} evaluations"),
        "eval.metric": Choice("voc10", "the area; 11 points are coarse where objects are few"),
    }


def render(choices: dict[str, Choice]) -> str:
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
