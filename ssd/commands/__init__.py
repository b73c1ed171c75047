"""The installed command: ssd300 COMMAND [ARGUMENT ...], with the arguments of the scripts.

In a checkout the commands are `train.py` and the files of `scripts/`. The wheel has them in this folder (see setup.py).
"""

import ast
import difflib
import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

COMMANDS = (  # in the order of a user's work
    "new-config", "check-data", "train", "evaluate", "detect", "demo", "export",
    "check-labels", "label-next", "show-matching", "fit-dboxes", "slim", "convert-weights", "replay",
    "make-shapes", "download-voc", "config-reference",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; without arguments, list the commands."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        lines = [f"  {command:{max(map(len, COMMANDS))}}  {summary(command)}" for command in COMMANDS]
        print("usage: ssd300 COMMAND ...; ssd300 COMMAND --help explains a command\n", *lines, sep="\n")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "ssd300 lists them"
        print(f"error: unknown command {name!r}; {hint}", file=sys.stderr)
        return 2
    sys.argv[0] = f"ssd300 {name}"  # what usage messages call the program
    return import_module(module_of(name)).main(["--eval-only", *rest] if name == "evaluate" else rest)


def module_of(command: str) -> str:
    """Return the name of a command's module, in the wheel or in the checkout."""
    stem = "train" if command == "evaluate" else command.replace("-", "_")
    if find_spec(f"{__name__}.train"):
        return f"{__name__}.{stem}"
    return stem if stem == "train" else f"scripts.{stem}"


def summary(command: str) -> str:
    """Return what a command does, in one line: the first of its module's docstring. The module is not loaded."""
    if command == "evaluate":
        return "Evaluate a run's best checkpoint: train --eval-only"
    spec = find_spec(module_of(command))
    source = Path(str(spec and spec.origin)).read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source)) or ""
    return re.sub(r": (python|ssd300) .*", "", docstring.partition("\n")[0])
