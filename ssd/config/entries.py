"""What the schema says of single entries: their dotted names, and what each may be, in words.

Everything is read from `Config`'s JSON schema, a public standard, so that no message depends on pydantic's own phrasing.
"""

import difflib
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from ssd.config.schema import Config

Entry = dict[str, Any]  # a part of the JSON schema: a section, a list, or a value
BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
TYPES = {"integer": "an integer", "number": "a number", "boolean": "true or false", "string": "text", "null": "null"}
# What other trainers call an entry, where its own name does not resemble it.
ALIASES = {
    alias: key
    for key, names in {
        "data.classes": "names nc num_classes",
        "data.root": "data_dir data_path dataset dataset_root",
        "data.workers": "jobs",
        "device": "accelerator cuda gpu gpus gpu_id gpu_ids",
        "eval.every": "eval_interval eval_period val_interval",
        "eval.nms_thresh": "iou iou_thres iou_thresh nms",
        "eval.patience": "early_stopping",
        "eval.score_thresh": "conf conf_thres conf_thresh",
        "model.init_from": "ckpt finetune load_from weights",
        "output_dir": "exp_dir log_dir logdir out output project save_dir save_folder work_dir",
        "seed": "manual_seed random_seed",
        "train.accumulate": "accum accumulation_steps grad_accum gradient_accumulation_steps",
        "train.batch_size": "b batch batch_size bs ims_per_batch samples_per_gpu",
        "train.iterations": "iters max_iter max_iters max_iterations max_steps num_steps steps total_steps",
        "train.lr": "base_lr initial_lr learning_rate lr0",
        "train.precision": "amp dtype fp16 half mixed_precision",
        "train.schedule": "cos_lr lr_schedule lr_scheduler scheduler",
        "train.weight_decay": "decay wd",
    }.items()
    for alias in names.split()
}
INPUT_SIZES = ("img", "img_size", "image_size", "imgsz", "input_size", "resolution")
INPUT_SIZE = "the network sees 300 × 300 pixels; data.tiles cuts large photos, for small objects"


@cache
def _schema() -> Entry:
    return Config.model_json_schema()


def resolved(entry: Entry) -> Entry:
    """The definition that an entry refers to, or the entry itself."""
    return _schema()["$defs"][entry["$ref"].rsplit("/", 1)[-1]] if "$ref" in entry else entry


def top_entry() -> Entry:
    """The entry that all others lie below."""
    return _schema()


def alternatives(entry: Entry) -> list[Entry]:
    """What an entry may be, one at a time."""
    return [resolved(each) for each in entry.get("anyOf", [entry])]


def child(entry: Entry | None, part: str | int) -> Entry | None:
    """The entry of that name in a section, or at that place of a list; None where the schema has none."""
    for each in alternatives(entry or {}):
        below = each.get("items") if isinstance(part, int) else each.get("properties", {}).get(part)
        if below:
            return resolved(below)
    return None


def is_section(entry: Entry | None) -> bool:
    return "properties" in (entry or {})


def section_in(entry: Entry | None) -> Entry | None:
    """The section that an entry is, or may be."""
    return next((each for each in alternatives(entry or {}) if is_section(each)), None)


def is_text(entry: Entry | None) -> bool:
    """Whether an entry may be any text, such as a path or a name."""
    return any(each.get("type") == "string" and not {"const", "enum"} & set(each) for each in alternatives(entry or {}))


def is_path(entry: Entry | None) -> bool:
    return any(each.get("format") == "path" for each in alternatives(entry or {}))


def known_keys() -> list[str]:
    """The dotted names of all entries; those of a list's entries go by the list's name (data.train.path)."""
    return list(_keys(top_entry(), ""))


def _keys(section: Entry, prefix: str) -> Iterator[str]:
    for name, entry in section["properties"].items():
        yield prefix + name
        below = resolved(entry)
        below = section_in(resolved(below.get("items", below)))
        if below:
            yield from _keys(below, f"{prefix}{name}.")


def nearest(name: str) -> str | None:
    """The known key that was probably meant by an unknown one: the nearest in full, or else by its last part."""
    plain = re.sub(r"\.\d+(?=\.)", "", name).replace("-", "_").lower()  # entries of a list go by the list's name
    if plain in ALIASES:
        return ALIASES[plain]
    close = difflib.get_close_matches(plain, known_keys(), n=1, cutoff=0.8)
    if close:
        return close[0]
    by_last = {key.rsplit(".", 1)[-1]: key for key in known_keys()}
    last = plain.rsplit(".", 1)[-1]
    close = difflib.get_close_matches(last, by_last, n=1, cutoff=0.7)
    return by_last[close[0]] if close else ALIASES.get(last)


def is_input_size(name: str) -> bool:
    """Whether an unknown key is what others call the size of the network's input, which is no entry here."""
    return name.rsplit(".", 1)[-1].replace("-", "_").lower() in INPUT_SIZES


def values_of(entry: Entry, quote: str = "'") -> str:
    """What an entry may be, in words; literal values are quoted."""
    *first, last = [words for each in alternatives(entry) for words in _words(each, quote)]
    return f"{', '.join(first)} or {last}" if first else last


def _words(entry: Entry, quote: str) -> list[str]:
    literal = entry.get("enum") or entry.get("examples") or ([entry["const"]] if "const" in entry else [])
    if literal:
        return [f"{quote}{value}{quote}" for value in literal]
    if is_section(entry):
        return ["a mapping of keys to values"]
    if entry["type"] == "array":
        number = " of one or more" if entry.get("minItems") else ""
        return [f"a list{number}, each {values_of(resolved(entry['items']), quote)}"]
    bounds = " and ".join(f"{sign} {_number(entry[bound])}" for bound, sign in BOUNDS.items() if bound in entry)
    return [f"{TYPES[entry['type']]} {bounds}".strip()]


def _number(value: float) -> str:
    return "2^63" if value == 2**63 else str(value)
