"""The pages name files, anchors, entries and options that exist. `test_docs_run.py` runs their commands."""

import re
from pathlib import Path

import pytest
import yaml

import train
from scripts import config_reference
from ssd.config.entries import known_keys
from tests.helpers.paths import PAGES, ROOT

PLACEHOLDERS = ("mine", "FILE", "CONFIG")  # stand for the user's own files


def test_readme_lists_every_option_of_train(capsys):
    (synopsis,) = re.findall(r"^python train.py (--config FILE \[.*)$", (ROOT / "README.md").read_text("utf-8"), re.M)
    with pytest.raises(SystemExit):
        train.parse_arguments(["--help"])
    usage = capsys.readouterr().out.partition("\n\n")[0]
    assert set(re.findall(r"--[a-z-]+", synopsis)) == set(re.findall(r"--[a-z-]+", usage))


def test_readme_lists_every_page():
    links = re.findall(r"\]\((docs/\w+\.md)\)", (ROOT / "README.md").read_text("utf-8"))
    assert {ROOT / link for link in links} == {*PAGES[1:]}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_files_and_entries_exist(page):
    text = page.read_text(encoding="utf-8")
    for path, anchor in re.findall(r"\]\(([^)#:]*)#?([^)#:]*)\)", text):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"
    for path in re.findall(r"`((?:ssd|data|scripts|configs|tests|docs)/(?:[\w/]+\.(?:py|yaml|md|pt|jpg)|(?:\w+/)*))`", text):
        assert Path(path).stem in PLACEHOLDERS or (ROOT / path).exists(), path
    for section, key in re.findall(r"`(data|model|loss|augment|train|eval|checkpoint)\.(\w+)\b", text):
        assert f"{section}.{key}" in known_keys() or key in ("py", "yaml", "txt"), f"{section}.{key}"


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_configuration_page_is_up_to_date():
    page, command = config_reference.page(), "python scripts/config_reference.py --output docs/configuration.md"
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == page, f"run {command}"
    below = [key for key in known_keys() if key not in ("data", "model", "loss", "augment", "train", "checkpoint", "eval")]
    for key in below:
        shown = re.sub(r"^data\.(train|val)\.", "data.train.N.", key)
        assert re.search(rf"^\| `{re.escape(shown)}` \| [^|\n]+ \| [^|\n]+ \| [^|\n]+ \|$", page, re.M), key


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_workflow_and_forms_parse(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content["name"]
    assert all({"runs-on", "steps"} <= set(job) for job in content.get("jobs", {}).values())
    assert ("jobs" in content) != ("body" in content)
