"""DESIGN's rule that imports point one way: each row imports from rows above it (or its own) only."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

ROWS = [
    {"ssd.config", "ssd.boxes", "ssd.distributed", "ssd.batch", "ssd.device", "ssd.preparation", "ssd.pictures", "ssd.progress",
     "ssd.stop", "ssd.records", "ssd.files", "ssd.memory"},
    {"ssd.dbox", "ssd.vgg", "data"},
    {"ssd.match", "ssd.model", "ssd.detect", "ssd.voc_eval", "ssd.checkpoint", "ssd.optim", "ssd.fault", "ssd.coco_eval"},
    {"ssd.loss", "ssd.weights", "ssd.layouts"},
    {"ssd.trainer", "ssd.evaluation", "ssd.predictor", "ssd.run", "ssd.run_folder", "ssd.export", "ssd.report"},
]  # fmt: skip
MODULES = sorted([*(ROOT / "ssd").glob("*.py"), *(ROOT / "data").glob("*.py")])


def row(module: str) -> int:
    rows = [i for i, names in enumerate(ROWS) if module in names or module.split(".")[0] in names]
    assert rows, f"{module} stands in no row: give it one"
    return rows[0]


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name for name in found if name.split(".")[0] in ("ssd", "data", "train", "scripts")}


@pytest.mark.parametrize("path", [path for path in MODULES if path.stem != "__init__"], ids=lambda path: path.stem)
def test_imports_point_one_way(path):
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for name in imported(path):
        assert name.split(".")[0] in ("ssd", "data"), f"{own} imports {name}"
        assert not (own.startswith("ssd") and name.startswith("data")), f"{own} imports {name}"
        assert row(name) <= row(own), f"{own} imports {name} from a later row"


def test_config_needs_no_torch():
    assert not any("torch" in name for name in _all_imports(ROOT / "ssd/config.py"))


def _all_imports(path: Path) -> list[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return names + [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
