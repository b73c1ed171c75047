"""Folders and files of the checkout that tests read."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# The project's configurations; a user's own files may lie beside them.
RECIPES = [ROOT / name for name in re.findall(r"^\| `(configs/\w+\.yaml)` \|", (ROOT / "README.md").read_text("utf-8"), re.M)]
