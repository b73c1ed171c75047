"""Print every entry of the configuration, as Markdown: python scripts/config_reference.py

    python scripts/config_reference.py --output docs/configuration.md

The entries and their descriptions come from ssd/config/schema.py.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from ssd.config.entries import Entry, child, is_section, resolved, section_in, top_entry, values_of
from ssd.system.arguments import Parser
from ssd.system.command import command

HEAD = """# Configuration

A run is one YAML file that states what differs from the defaults; `configs/` has files to start from. Only `data.train` and
`data.val` are required. On the command line, `key=value` changes any entry: the key is the dotted name, the value is YAML, and
the items of a list are numbered from 0:

```
python train.py --config configs/quickstart.yaml train.lr=5e-4 train.epochs=20 data.train.0.split=trainval
```

An unknown key, a wrong type or a value out of bounds is refused before anything starts. The message names the key, the expected
values and the nearest known key. The output folder keeps the full configuration, defaults included, in `config.yaml`.

Class names are read literally: `classes: [no, 1e3, 007]` are three names and need no quotes, and neither does a folder called
`2007`. A name needs quotes if it contains `: `, ` #` or, in a list, a comma, or if it begins with one of ``[]{}&*!|>'"%@` ``.
"""


@command(prints_result=True)
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write to this file instead of printing")
    options = parser.parse_args(arguments)
    if options.output:
        options.output.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")
    return 0


def page() -> str:
    """Return the page, in Markdown."""
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
        yield "\n`data.train` and `data.val` are lists of folders. Each folder has these entries:\n"
        yield from table({f"data.train.N.{key}": below for key, below in source["properties"].items()})
    for key, below in entry["properties"].items():
        optional = section_in(below)
        if optional:
            yield f"\n`{name}.{key}`: {' '.join(optional['description'].split())}\n"
            yield from table({f"{name}.{key}.{each}": entry for each, entry in optional["properties"].items()})


def table(entries: dict[str, Entry]) -> Iterator[str]:
    yield "| entry | values | default | |\n|---|---|---|---|"
    for name, entry in entries.items():
        default = f"`{json.dumps(entry['default'])}`" if "default" in entry else "required"
        description = " ".join(entry["description"].split())  # a table row is one line
        yield f"| `{name}` | {values_of(entry, quote='`')} | {default} | {description} |"


if __name__ == "__main__":
    sys.exit(main())
