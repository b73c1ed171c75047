"""Writes docs/configuration.md, every entry of a configuration, from ssd/config.py: python scripts/config_reference.py"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ssd.config import Config

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
FAR = 2**32  # bounds from here on tell a reader nothing
TYPES = {"integer": "integer", "number": "number", "boolean": "true, false", "string": "text", "null": "null"}
HEAD = """# Configuration

A run is one YAML file; `configs/` has some to start from. Only `data.train` and `data.val` are needed, all else has a default.
Any entry can be changed on the command line by its dotted name, in YAML's notation, and the entries of a list by their number:

```
python train.py --config configs/quickstart.yaml train.lr=5e-4 train.epochs=20 data.train.0.split=trainval
```

What is unknown, of a wrong type or out of bounds is refused before anything starts, with its name, what was expected, and the
nearest known entry. The run's folder keeps the whole of it, defaults included, in `config.yaml`.

This page is written by `scripts/config_reference.py` from `ssd/config.py`.
"""


def main() -> int:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")
    return 0


def page() -> str:
    """The page, in Markdown."""
    schema = Config.model_json_schema()
    top = [(name, entry) for name, entry in schema["properties"].items() if "$ref" not in entry]
    parts = [HEAD, "## The run\n", *table(top, schema)]
    for name, entry in schema["properties"].items():
        if "$ref" in entry:
            parts += section(name, resolved(entry, schema), schema)
    return "\n".join(parts)


def section(name: str, model: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    yield f"\n## `{name}`\n\n{model['description']}\n"
    yield from table([(f"{name}.{key}", entry) for key, entry in model["properties"].items()], schema)
    for key in model["properties"]:
        items = resolved(model["properties"][key].get("items", {}), schema)
        if "properties" in items and key == "train":  # the entries of data.val are the same
            yield f"\n`{name}.{key}` and `{name}.val` are lists of folders, each with\n"
            yield from table([(f"{name}.{key}.N.{below}", entry) for below, entry in items["properties"].items()], schema)


def table(entries: list[tuple[str, dict[str, Any]]], schema: dict[str, Any]) -> Iterator[str]:
    yield "| entry | values | default | |\n|---|---|---|---|"
    for name, entry in entries:
        default = f"`{json.dumps(entry['default'])}`" if "default" in entry else "needed"
        yield f"| `{name}` | {values_of(entry, schema)} | {default} | {entry['description']} |"


def resolved(entry: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The definition that an entry refers to, or the entry itself."""
    return schema["$defs"][entry["$ref"].rsplit("/", 1)[-1]] if "$ref" in entry else entry


def values_of(entry: dict[str, Any], schema: dict[str, Any]) -> str:
    """What an entry may be, in words."""
    if "anyOf" in entry:
        return ", ".join(values_of(each, schema) for each in entry["anyOf"])
    if "$ref" in entry:
        return "folders"
    if "const" in entry or "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry.get("enum", [entry.get("const")]))
    if entry["type"] == "array":
        return f"list of {values_of(entry['items'], schema)}"
    if "pattern" in entry:
        return "`auto`, `cpu`, `cuda`, `cuda:N`"
    bounds = " and ".join(f"{sign} {entry[bound]:g}" for bound, sign in BOUNDS.items() if entry.get(bound, FAR) < FAR)
    return f"{TYPES[entry['type']]} {bounds}".strip()


if __name__ == "__main__":
    sys.exit(main())
