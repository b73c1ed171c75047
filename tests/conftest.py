"""What many tests need: the shapes data set, drawn once, and the real data sets where they are at hand."""

import os
import sys
from pathlib import Path

import pytest

from data.shapes import write_shapes

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"

# Two processes with two threads each would fight for two cores.
os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is remembered of photos between runs is kept apart from the user's."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds `shapes`: 24 images to train on, 8 to evaluate on."""
    root = tmp_path_factory.mktemp("datasets")
    write_shapes(root / "shapes", num_train=24, num_val=8, seed=3)
    return root


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the real data sets."""
    if not SHARED.is_dir():
        pytest.skip(f"the real data sets are not at {SHARED}")
    return SHARED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures of the table of bad inputs, where it was run."""
    tally = getattr(sys.modules.get("tests.test_bad_input"), "TALLY", None)
    if tally:
        terminalreporter.write_line("bad input: " + ", ".join(f"{count} {name}" for name, count in tally.items()))
