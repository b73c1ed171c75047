"""What README and docs/ tell users to type exists: commands, options, configuration entries, files."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from ssd.config import known_keys
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACEHOLDERS = ("mine", "FILE", "CONFIG")  # stand for the user's own files


def commands(page: Path) -> list[str]:
    """The lines of a page's code blocks and code spans that start a script of ours."""
    text = page.read_text(encoding="utf-8").replace(" \\\n", " ")
    blocks = re.findall(r"^```\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", text)
    return [line for line in lines if re.search(r"(train|scripts/\w+)\.py\b.* ", line)]


@cache
def help_of(script: str) -> str:
    done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


@pytest.mark.parametrize("page, command", [(page, command) for page in PAGES for command in commands(page)])
def test_commands_exist(page, command):
    command = command.partition("  # ")[0]
    script = re.search(r"(?:train|scripts/\w+)\.py", command)[0]
    assert (ROOT / script).is_file()
    words = command[command.index(script) + len(script) :].replace("[", " ").replace("]", " ").split()
    for option in re.findall(r"(?<=\s)--[a-z-]+", f" {' '.join(words)}"):
        assert option in help_of(script), f"{page.name}: {script} has no {option}"
    for key in re.findall(r"\b([a-z_.]+)=", " ".join(words)):
        assert key == "key" or re.sub(r"\.\d+", "", key) in known_keys(), f"{page.name}: no entry {key}"
    for config in re.findall(r"configs/(\w+)\.yaml", command):
        assert config in PLACEHOLDERS or (ROOT / "configs" / f"{config}.yaml").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
    for path in re.findall(r"`((?:ssd|data|scripts|configs|tests)/\w+\.(?:py|yaml))`", text):
        assert Path(path).stem in PLACEHOLDERS or (ROOT / path).is_file(), path
    for section, key in re.findall(r"`(data|model|loss|augment|train|eval|checkpoint)\.(\w+)\b", text):
        assert f"{section}.{key}" in known_keys() or key in ("py", "yaml"), f"{section}.{key}"


def test_there_is_something_to_check():
    assert len(commands(ROOT / "README.md")) > 8
