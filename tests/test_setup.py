"""The package: pip installs what pyproject.toml declares, and the installed command works without the checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
import yaml

from data.shapes import CLASSES
from tests.helpers.paths import ROOT

SOURCES = ("data", "docs", "scripts", "ssd", "train.py", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
# As on Windows and macOS.
SPAWN = 'import multiprocessing; multiprocessing.get_all_start_methods = lambda: ["spawn"]'
IMPORT_ALL = """
import importlib.util, pkgutil, ssd
assert importlib.util.find_spec("data") is importlib.util.find_spec("train") is None
for module in pkgutil.walk_packages(ssd.__path__, "ssd."):
    importlib.import_module(module.name)
"""


def requirements(name: str) -> list[str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [re.sub(r"\s+#.*", "", line) for line in lines if not line.startswith("-r ")]


def test_requirements_match_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert sorted(requirements("requirements.txt")) == sorted(project["dependencies"] + extras["export"])
    assert sorted(requirements("requirements-dev.txt")) == sorted(extras["dev"])


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and the libraries of the running environment. Returns the folder of its programs."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "checkout").mkdir()
    for name in SOURCES:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / "checkout" / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, folder / "checkout"]
    subprocess.run([*pip, *build], check=True)
    venv.create(folder / "env", symlinks=os.name != "nt")
    base = {"base": str(folder / "env"), "platbase": str(folder / "env")}
    libraries, programs = (Path(sysconfig.get_path(kind, "venv", base)) for kind in ("purelib", "scripts"))
    (libraries / "beside.pth").write_text(f"{sysconfig.get_path('purelib')}\n{SPAWN}\n")
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "--python", programs / "python", "install", "--no-deps", "--no-index", wheel], check=True)
    shutil.rmtree(folder / "checkout")
    return programs


@pytest.mark.slow
def test_the_installed_command_works_in_another_folder(installed, tmp_path):
    def run(program: str, *arguments: str) -> str:
        words, around = [installed / program, *arguments], {**os.environ, "PYTHONPATH": ""}
        done = subprocess.run(words, cwd=tmp_path, env=around, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("python", "-c", IMPORT_ALL)
    assert "  detect  " in run("ssd300")
    usage = run("ssd300", "train", "--help")
    assert usage.startswith("usage: ssd300 train ")
    assert not re.search(r"\w\.py\b|docs/", usage)
    run("ssd300", "make-shapes", "shapes", "--train", "8", "--val", "4")
    config = {
        "data": {
            "classes": list(CLASSES), "root": ".", "workers": 1,
            "train": [{"path": "shapes", "split": "train"}], "val": [{"path": "shapes", "split": "val"}],
        },
        "model": {"pretrained": "none", "width": 0.05},
        "train": {"batch_size": 4, "iterations": 2, "warmup": 1},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert run("ssd300", "train", "--config", "config.yaml", "output_dir=run").splitlines()[-1].startswith("mAP@0.5 ")
    run("ssd300", "detect", "run/checkpoints/best.pt", "shapes/JPEGImages", "--output", "found")
    assert (tmp_path / "found/detections.json").exists()
