"""Imports point one way: each room uses its own row and those above it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

PAPER = {"architecture", "boxes", "dbox", "model", "match", "loss", "detect", "batch", "preprocessing"}
ROWS = [
    {"ssd", "ssd.backbones"},
    {"ssd.config"},
    {"ssd.system"},
    {"ssd.weights"},
    {"ssd.inference", "ssd.compress"},
    {"ssd.evaluation"},
    {"data"},
    {"ssd.training", "ssd.deploy"},
    {"ssd.autoconfig", "ssd.diagnostics"},
    {"ssd.commands"},
]
FORBIDDEN = {"data": {"ssd.weights", "ssd.evaluation", "ssd.compress"}, "ssd.deploy": {"data", "ssd.training"}}  # beside ROWS
NO_COMMANDS = {"scripts/run_onnx.py", "scripts/ssd.py"}  # an example that imports its libraries first; the way to the checkout
PROGRAMS = sorted([*(ROOT / "scripts").rglob("*.py"), *(ROOT / "ssd").rglob("*.py"), *(ROOT / "data").rglob("*.py")])
MODULES = sorted([*(ROOT / "ssd").rglob("*.py"), *(ROOT / "data").rglob("*.py")])


def room(module: str) -> str:
    first, *rest = module.split(".")
    if first == "data":
        return "data"
    return "ssd" if not rest or rest[0] in PAPER else f"ssd.{rest[0]}"


def row(name: str) -> int:
    rows = [i for i, rooms in enumerate(ROWS) if name in rooms]
    assert rows, f"{name} is no room: ssd/ itself holds {', '.join(sorted(PAPER))}"
    return rows[0]


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names if "." not in node.module)}
    return found


def own_imports(path: Path) -> set[str]:
    return {name for name in imported(path) if name.split(".")[0] in ("ssd", "data", "train", "scripts")} - {"ssd", "data"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for name in own_imports(path):
        assert name.split(".")[0] in ("ssd", "data"), f"{path.relative_to(ROOT)} imports {name}"
        assert row(room(name)) <= row(own), f"{path.relative_to(ROOT)} imports {name}"
        assert room(name) not in FORBIDDEN.get(own, set()), f"{path.relative_to(ROOT)} imports {name}"


def test_no_module_imports_the_command():
    for path in PROGRAMS:
        assert "train" not in own_imports(path), f"{path.relative_to(ROOT)} imports train: what is shared lives in ssd/training"


def test_config_needs_no_torch():
    for path in (ROOT / "ssd" / "config").glob("*.py"):
        assert not any("torch" in name for name in imported(path)), path


# Runs every command without valid arguments in one process, and prints the modules loaded before each answer.
ANSWERS = """
import runpy, sys
for path, *arguments in (line.split() for line in sys.argv[1:]):
    sys.argv = [path, *arguments]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        print(path, *arguments, end.code, *(name for name in ("torch", "cv2", "matplotlib") if name in sys.modules), sep="|")
"""


def test_help_and_usage_errors_need_no_heavy_imports():
    """PyTorch alone takes seconds."""
    commands = ["train.py", *(f"scripts/{path.name}" for path in sorted((ROOT / "scripts").glob("*.py")))]
    calls = [f"{path} --help" for path in commands if path not in NO_COMMANDS]
    calls += ["train.py --config configs/bccd.yaml train.learning_rate=1", "scripts/check_data.py configs/bccd.yaml trian.lr=1"]
    done = subprocess.run([sys.executable, "-c", ANSWERS, *calls], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = [line for line in done.stdout.splitlines() if "|" in line and line.split("|")[0] in commands]
    assert answers == [f"{call.replace(' ', '|')}|{0 if '--help' in call else 2}" for call in calls]
