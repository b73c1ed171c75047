"""Output that cannot be printed is dropped, and nothing else is lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from ssd.system.command import command
from tests.helpers.paths import ROOT

LIKE_HEAD = "> >(true); code=$?; wait; exit $code"
PRINTING = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tqdm import tqdm
from ssd.system.command import command

@command(prints_result=sys.argv[3] == "result")
def main():
    print("of interest", flush=True)
    for _ in tqdm(range(3), file=sys.stderr, disable=False):
        tqdm.write("more", file=sys.stdout)
    print("x" * 100_000)
    Path(sys.argv[2]).write_text("done")
    return 0

sys.exit(main())
"""

CONNECTED = """
import sys
from types import SimpleNamespace
from ssd.system.command import command
from ssd.system.errors import Failure

sys.modules["torch.distributed"] = SimpleNamespace(is_initialized=lambda: True)

class Loader:
    def __del__(self):
        print("freed", file=sys.stderr)

@command()
def main():
    loader = Loader()
    print("begun")
    raise Failure("lost")

main()
"""


def run(tmp_path: Path, where: str, kind: str = "watched") -> tuple[int, str]:
    """Return the exit code and errors of a command; `where` is its redirection in shell syntax."""
    words = f'"$0" -c "$1" "$2" "$3" {kind} {where}'
    shell = ["bash", "-c", words, sys.executable, PRINTING, str(ROOT), str(tmp_path / "done")]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=60)
    assert (tmp_path / "done").read_text() == "done"
    return done.returncode, done.stderr


@pytest.mark.parametrize("where", [">/dev/full", ">/dev/full 2>&1", ">&-", ">&- 2>&- <&-", "2>/dev/full", LIKE_HEAD])
def test_lost_output_does_not_stop_a_command(tmp_path, where):
    code, errors = run(tmp_path, where)
    assert code == 0
    assert "Error" not in errors
    assert "error" not in errors


def test_lost_result_is_a_failure(tmp_path):
    code, errors = run(tmp_path, ">/dev/full", "result")
    assert code == 1
    assert errors.splitlines()[-1] == "error: standard output: No space left on device; make room"
    code, errors = run(tmp_path, LIKE_HEAD, "result")
    assert code == 0
    assert "error" not in errors


@pytest.mark.parametrize("is_closed", [False, True])
def test_missing_streams_are_restored(monkeypatch, is_closed):
    def stream():
        if not is_closed:
            return None
        closed = open(os.devnull, "w")  # noqa: SIM115
        closed.close()
        return closed

    @command()
    def main() -> int:
        print("one")
        print("two", file=sys.stderr, flush=True)
        for _ in tqdm(range(2), disable=None):
            tqdm.write("three", file=sys.stdout)
        assert not sys.stderr.isatty()
        return 0

    before = stream(), stream()
    monkeypatch.setattr(sys, "stdout", before[0])
    monkeypatch.setattr(sys, "stderr", before[1])
    code, after = main(), (sys.stdout, sys.stderr)
    monkeypatch.undo()
    assert code == 0
    assert after == before


def test_distributed_process_exits_without_cleanup(tmp_path):
    """Cleaning up a loader takes seconds, in which the launcher's signal would cause a second error. Output is kept."""
    script = tmp_path / "connected.py"
    script.write_text(CONNECTED, encoding="utf-8")
    around = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True, env=around)
    assert (done.returncode, done.stdout, done.stderr) == (1, "begun\n", "error: lost\n")
