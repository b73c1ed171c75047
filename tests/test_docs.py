"""What the pages name exists: files, entries, options. The commands of README.md and docs/ are run by test_docs_run.py."""

import re
from pathlib import Path

import pytest

import train
from scripts import config_reference
from ssd.config.entries import known_keys
from tests.helpers.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACEHOLDERS = ("mine", "FILE", "CONFIG")  # stand for the user's own files


def test_the_readme_gives_every_option_of_the_command(capsys):
    (synopsis,) = re.findall(r"^python train.py (--config FILE \[.*)$", (ROOT / "README.md").read_text(), re.M)
    with pytest.raises(SystemExit):
        train.parse_arguments(["--help"])
    usage = capsys.readouterr().out.partition("\n\n")[0]
    assert set(re.findall(r"--[a-z-]+", synopsis)) == set(re.findall(r"--[a-z-]+", usage))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_and_files_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
    for path in re.findall(r"`((?:ssd|data|scripts|configs|tests)/[\w/]+\.(?:py|yaml))`", text):
        assert Path(path).stem in PLACEHOLDERS or (ROOT / path).is_file(), path
    for section, key in re.findall(r"`(data|model|loss|augment|train|eval|checkpoint)\.(\w+)\b", text):
        assert f"{section}.{key}" in known_keys() or key in ("py", "yaml", "txt"), f"{section}.{key}"


def test_the_reference_of_the_configuration_is_as_the_code_has_it():
    page = config_reference.page()
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == page, "run python scripts/config_reference.py"
    below = [key for key in known_keys() if key not in ("data", "model", "loss", "augment", "train", "checkpoint", "eval")]
    for key in below:
        shown = re.sub(r"^data\.(train|val)\.", "data.train.N.", key)
        assert re.search(rf"^\| `{re.escape(shown)}` \| [^|\n]+ \| [^|\n]+ \| [^|\n]+ \|$", page, re.M), key
