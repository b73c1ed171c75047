"""Writes docs/configuration.md, every entry, from ssd/config/schema.py: python scripts/config_reference.py"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ssd.config.entries import Entry, child, is_section, resolved, section_in, top_entry, values_of
from ssd.system.arguments import Parser
from ssd.system.command import command

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
HEAD = """# Configuration

A run is one YAML file that states what differs from the defaults; `configs/` has some to start from. Only `data.train` and
`data.val` are needed. Any entry can be changed on the command line by its dotted name, in YAML's notation, and the entries of a
list by their number:

```
python train.py --config configs/quickstart.yaml train.lr=5e-4 train.epochs=20 data.train.0.split=trainval
```

What is unknown, of a wrong type or out of bounds is refused before anything starts, with its name, what was expected, and the
nearest known entry. The run's folder keeps the whole of it, defaults included, in `config.yaml`.

Names of classes are read as they are written: `classes: [no, 1e3, 007]` are three names, without quotes; a folder called `2007`
needs none either. Quotes are needed around a name with `: `, ` #`, a comma in a list, or a first letter of ``[]{}&*!|>'"%@` ``.

This page is written by `scripts/config_reference.py` from `ssd/config/schema.py`.
"""


@command()
def main(arguments: list[str] | None = None) -> int:
    Parser(__doc__).parse_args(arguments)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")
    return 0


def page() -> str:
    """The page, in Markdown."""
    entries = {name: resolved(entry) for name, entry in top_entry()["properties"].items()}
    parts = [HEAD, "## The run\n", *table({name: entry for name, entry in entries.items() if not is_section(entry)})]
    for name, entry in entries.items():
        if is_section(entry):
            parts += section(name, entry)
    return "\n".join(parts)


def section(name: str, entry: Entry) -> Iterator[str]:
    yield f"\n## `{name}`\n\n{entry['description']}\n"
    yield from table({f"{name}.{key}": below for key, below in entry["properties"].items()})
    if name == "data":
        source = child(child(entry, "train"), 0)
        assert source
        yield "\n`data.train` and `data.val` are lists of folders, each with\n"
        yield from table({f"data.train.N.{key}": below for key, below in source["properties"].items()})
    for key, below in entry["properties"].items():
        optional = section_in(below)
        if optional:
            yield f"\n`{name}.{key}`: {' '.join(optional['description'].split())}\n"
            yield from table({f"{name}.{key}.{each}": entry for each, entry in optional["properties"].items()})


def table(entries: dict[str, Entry]) -> Iterator[str]:
    yield "| entry | values | default | |\n|---|---|---|---|"
    for name, entry in entries.items():
        default = f"`{json.dumps(entry['default'])}`" if "default" in entry else "needed"
        description = " ".join(entry["description"].split())  # a row is one line, however long
        yield f"| `{name}` | {values_of(entry, quote='`')} | {default} | {description} |"


if __name__ == "__main__":
    sys.exit(main())
