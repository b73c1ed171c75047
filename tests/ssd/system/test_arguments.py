import importlib

import pytest

from tests.conftest import ROOT

EXAMPLE = "run_onnx"  # without anything of this project
COMMANDS = ["train", *(f"scripts.{path.stem}" for path in sorted((ROOT / "scripts").glob("*.py")) if path.stem != EXAMPLE)]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_call_is_answered_in_one_line(command, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(command).main(["--no-such-option"])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith("; see --help")
