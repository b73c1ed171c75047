"""Build the wheel; all metadata is in pyproject.toml.

A package called `data` would be in everybody's way. So the wheel has `data/` as `ssd.data`, and `train.py` and `scripts/` as
`ssd.commands`. Their imports are rewritten to match, and so are the commands that messages name: `python scripts/detect.py`
becomes `ssd300 detect`. An editable installation uses the checkout as it is.
"""

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CHECKOUT_ONLY = ("benchmark", "benchmark_gpu", "run_onnx", "ssd", "torture")
COMMANDS = [Path("train.py"), *(path for path in sorted(Path("scripts").glob("*.py")) if path.stem not in CHECKOUT_ONLY)]
NAMED = re.compile(rf"(?<![/\w])(?:python )?(?:scripts/)?({'|'.join(path.stem for path in COMMANDS)})\.py\b")


class BuildPackage(build_py):
    def run(self) -> None:
        if self.editable_mode:
            return super().run()
        shutil.rmtree(self.build_lib, ignore_errors=True)  # else modules of an earlier build would stay
        super().run()
        package = Path(self.build_lib, "ssd")
        shutil.copytree("data", package / "data", ignore=shutil.ignore_patterns("__pycache__"))
        for path in COMMANDS:
            shutil.copy(path, package / "commands")
        for path in package.rglob("*.py"):
            path.write_text(as_installed(path.read_text(encoding="utf-8")), encoding="utf-8")


def as_installed(source: str) -> str:
    """Return a module's source with the names that its parts have in the wheel."""
    source = re.sub(r"^(\s*from )data(?=[. ].*import)", r"\1ssd.data", source, flags=re.MULTILINE)
    source = re.sub(r"(torchrun .*)\btrain\.py", r"\1-m ssd.commands.train", source)
    source = re.sub(r"(?<!--output )docs/configuration\.md", "ssd300 config-reference", source)
    return NAMED.sub(lambda match: f"ssd300 {match[1].replace('_', '-')}", source)


setup(cmdclass={"build_py": BuildPackage})
