"""Looks at a folder of photos with boxes, and writes a configuration that trains on it: python scripts/new_config.py FOLDER

    python scripts/new_config.py datasets/mine
    python train.py --config configs/mine.yaml

The folder may be in VOC's layout (JPEGImages, Annotations), COCO's (a JSON file) or YOLO's (images, labels). Classes are those
that have objects; splits are taken as they are, or a fifth of the photos is set aside for evaluation. What fits the machine
and the objects' sizes is chosen: with a GPU, the whole network from ImageNet weights; without, half of its width, from scratch.
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import yaml

from data.annotation import DataError
from data.coverage import best_overlaps
from data.layouts.find import find_layout
from data.photos import Photos, load_photos
from data.splits import choose
from ssd.config import ConfigError, SourceConfig
from ssd.config_file import load_config
from ssd.dbox import DBOX_SPECS, make_dbox_list
from ssd.system.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
# Samples that a run sees: a CPU with two cores takes half an hour for its number; on a GPU it is half of the paper's run.
SAMPLES = {"cpu": 25_000, "cuda": 1_920_000}
EPOCHS = {"cpu": (5, 150), "cuda": (20, 240)}  # at least, at most
EVALUATIONS = 5
TEMPLATES = {"cpu": "bccd.yaml", "cuda": "ssd300_voc07.yaml"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="photos with boxes, as VOC, COCO or YOLO")
    parser.add_argument("--output", type=Path, metavar="FILE", help="by default configs/NAME_OF_FOLDER.yaml")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    options = parser.parse_args(arguments)
    name = re.sub(r"\W+", "_", options.folder.resolve().stem).strip("_") or "mine"
    output = options.output or ROOT / "configs" / f"{name}.yaml"
    try:
        if output.exists() and not options.overwrite:
            raise UsageError(f"{output}: exists already; name another --output, or --overwrite")
        text, summary = describe(options.folder, name, "cuda" if torch.cuda.is_available() else "cpu")
        output.write_text(text, encoding="utf-8")
        load_config(output)
    except (ConfigError, DataError, UsageError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    here = Path.cwd()
    shown = output.relative_to(here) if output.is_relative_to(here) else output
    print(summary)
    print(f"written: {shown}; now: python train.py --config {shown}")
    return 0


def describe(folder: Path, name: str, device: str) -> tuple[str, str]:
    """The text of a configuration for a folder, and what was found in it.

    Raises:
        DataError: the folder is of no known layout, or something in it cannot be used.
        UsageError: it holds no objects, or only one split.
    """
    kind, layout = find_layout(folder)
    counts = layout.class_counts()
    if not counts:
        raise UsageError(f"{folder}: no object was found in it")
    sources = choose(folder, layout.splits())
    root, path = place(folder)
    loaded = [load_photos([SourceConfig(path=path, **source)], root, list(counts)) for source in sources]
    train, val = (part.photos for part in loaded)
    dboxes, covered = choose_dboxes(train)
    batch_size = 16 if device == "cpu" else 32
    least, most = EPOCHS[device]
    epochs = int(np.clip(round(SAMPLES[device] / len(train)), least, most))
    iterations = max(1, epochs * len(train) // batch_size)
    every = max(1, iterations // EVALUATIONS)
    values = {
        "output_dir": f"runs/{name}",
        "data.classes": flow(list(counts)),
        "data.root": flow(root),
        "data.train": [flow({"path": path, **sources[0]})],
        "data.val": [flow({"path": path, **sources[1]})],
        "model.dboxes": f"{dboxes}  # voc: objects from a tenth of the photo | coco: smaller ones as well",
        "augment.expand": "true  # shrinks photos into a larger canvas",
        "train.batch_size": str(batch_size),
        "train.iterations": "null",
        "train.epochs": str(epochs),
        "train.milestones": "null",
        "train.warmup": str(min(500, iterations // 10)),
        "checkpoint": f"{{every: {every}, keep: 2}}",
        "eval.every": str(every),
        "eval.metric": "voc10",
    }
    text = fill((ROOT / "configs" / TEMPLATES[device]).read_text(encoding="utf-8"), values)
    header = f"# {folder.name}: {len(counts)} classes, {len(train)} photos to train on; written by scripts/new_config.py.\n"
    notes = [f"note: {note}\n" for note in dict.fromkeys(note for part in loaded for note in part.notes)]
    summary = (
        f"{''.join(notes)}{folder}: {kind.upper()} layout, {len(train)} photos to train on, {len(val)} to evaluate on\n"
        f"classes: {', '.join(f'{each} ({count})' for each, count in counts.items())}\n"
        f"DBoxes: {dboxes}, which cover {covered:.1%} of the objects; {epochs} epochs of batches of {batch_size}"
    )
    return header + text, summary


def place(folder: Path) -> tuple[str, str]:
    """data.root and path: relative where the folder lies below the current one."""
    full = folder.resolve()
    here = Path.cwd().resolve()
    parent = full.parent
    return str(parent.relative_to(here) if parent.is_relative_to(here) else parent), full.name


def choose_dboxes(photos: Photos) -> tuple[str, float]:
    """The kind of DBoxes that covers the objects best, and the share of the objects that it covers."""
    shares = {name: float((best_overlaps(photos, make_dbox_list(spec)) >= 0.5).mean()) for name, spec in DBOX_SPECS.items()}
    best = max(shares, key=lambda name: (round(shares[name], 2), name == "voc"))
    return best, shares[best]


def flow(value: object) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()


def fill(template: str, values: dict[str, str | list[str]]) -> str:
    """A recipe with other values; comments behind them stay, those at its head and of whole lists go."""
    lines = []
    section, in_list = "", False
    for line in template.splitlines():
        entry = re.match(r"( *)([a-z_0-9]+):(.*)", line)
        if line.startswith("#") or (in_list and not entry):
            continue
        assert entry, line
        indent, key, rest = entry.groups()
        section = section if indent else key
        name = f"{section}.{key}" if indent else key
        value = values.get(name)
        in_list = isinstance(value, list)
        if isinstance(value, list):
            lines += [f"{indent}{key}:", *(f"{indent}  - {each}" for each in value)]
        elif value is None:
            lines.append(line)
        else:
            value, _, own_comment = value.partition("  # ")
            comment = own_comment or rest.partition("  # ")[2].strip()
            lines.append(f"{indent}{key}: {value}".ljust(31) + f" # {comment}" if comment else f"{indent}{key}: {value}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
