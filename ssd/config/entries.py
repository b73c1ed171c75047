"""Look up configuration entries in the schema: their dotted names and a description of their allowed values.

All of it comes from the JSON schema of `Config`, a public standard, so no message depends on pydantic's phrasing.
"""

import difflib
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from ssd.architecture import ARCHITECTURES
from ssd.config.schema import Config

Entry = dict[str, Any]  # JSON schema of a section, a list or a value
BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
TYPES = {"integer": "an integer", "number": "a number", "boolean": "true or false", "string": "text", "null": "null"}
# Other trainers' names for our entries, where they do not resemble ours.
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
_SIZES = ", ".join(f"{name}: {row.input_size}" for name, row in ARCHITECTURES.items())
INPUT_SIZE = (
    f"the input size belongs to model.architecture ({_SIZES}); for small objects, data.tiles cuts large photos into tiles"
)


@cache
def _schema() -> Entry:
    return Config.model_json_schema()


def resolved(entry: Entry) -> Entry:
    """Return the definition that an entry refers to, or the entry itself."""
    return _schema()["$defs"][entry["$ref"].rsplit("/", 1)[-1]] if "$ref" in entry else entry


def top_entry() -> Entry:
    """Return the root of the schema."""
    return _schema()


def alternatives(entry: Entry) -> list[Entry]:
    """Return the alternatives of a union; for any other entry, the entry itself."""
    return [resolved(each) for each in entry.get("anyOf", [entry])]


def child(entry: Entry | None, part: str | int) -> Entry | None:
    """Return the entry with this name in a section or this index in a list; None if the schema has none."""
    for each in alternatives(entry or {}):
        named = each.get("properties", {}).get(part) or each.get("additionalProperties")  # the latter: of a mapping by name
        below = each.get("items") if isinstance(part, int) else named
        if below:
            return resolved(below)
    return None


def is_section(entry: Entry | None) -> bool:
    return "properties" in (entry or {})


def section_in(entry: Entry | None) -> Entry | None:
    """Return the section if the entry is one, or a union with one."""
    return next((each for each in alternatives(entry or {}) if is_section(each)), None)


def is_text(entry: Entry | None) -> bool:
    """Return whether an entry accepts free text, such as a path or a name."""
    return any(each.get("type") == "string" and not {"const", "enum"} & set(each) for each in alternatives(entry or {}))


def is_path(entry: Entry | None) -> bool:
    return any(each.get("format") == "path" for each in alternatives(entry or {}))


def known_keys() -> list[str]:
    """Return the dotted names of all entries. Names within list items have no index: data.train.path."""
    return list(_keys(top_entry(), ""))


def _keys(section: Entry, prefix: str) -> Iterator[str]:
    for name, entry in section["properties"].items():
        yield prefix + name
        below = resolved(entry)
        below = section_in(resolved(below.get("items", below)))
        if below:
            yield from _keys(below, f"{prefix}{name}.")


def nearest(name: str) -> str | None:
    """Suggest a known key for an unknown one: the closest full name, or else the closest last part."""
    plain = re.sub(r"\.\d+(?=\.)", "", name).replace("-", "_").lower()  # drop list indices
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
    """Return whether an unknown key is another trainer's name for the input size, which is fixed here."""
    return name.rsplit(".", 1)[-1].replace("-", "_").lower() in INPUT_SIZES


def values_of(entry: Entry, quote: str = "'") -> str:
    """Describe the allowed values of an entry; literal values are quoted."""
    *first, last = [words for each in alternatives(entry) for words in _words(each, quote)]
    return f"{', '.join(first)} or {last}" if first else last


def _words(entry: Entry, quote: str) -> list[str]:
    literal = entry.get("enum") or entry.get("examples") or ([entry["const"]] if "const" in entry else [])
    if literal:
        return [f"{quote}{value}{quote}" for value in literal]
    if is_section(entry):
        return ["a mapping of keys to values"]
    if entry["type"] == "object":
        return [f"a mapping of names to {values_of(resolved(entry['additionalProperties']), quote)}"]
    if entry["type"] == "array":
        number = " of one or more" if entry.get("minItems") else ""
        return [f"a list{number}, each {values_of(resolved(entry['items']), quote)}"]
    bounds = " and ".join(f"{sign} {_number(entry[bound])}" for bound, sign in BOUNDS.items() if bound in entry)
    return [f"{TYPES[entry['type']]} {bounds}".strip()]


def _number(value: float) -> str:
    return "2^63" if value == 2**63 else str(value)
