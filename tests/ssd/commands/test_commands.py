"""`ssd300` finds a command by its name; tests/test_setup.py runs it as installed."""

import pytest

import train
from ssd.commands import COMMANDS, main
from tests.helpers.paths import ROOT


def test_without_arguments_every_command_is_listed(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(COMMANDS)
    assert all(len(line.split()) > 3 and len(line) < 120 and "python" not in line for line in lines)


def test_every_script_for_users_is_a_command():
    scripts = {path.stem.replace("_", "-") for path in (ROOT / "scripts").glob("*.py")}
    assert set(COMMANDS) - {"train", "evaluate"} == scripts - {"benchmark", "benchmark-gpu", "run-onnx", "ssd", "torture"}


@pytest.mark.parametrize(
    "name, hint", [("detcet", "did you mean detect?"), ("new_config", "did you mean new-config?"), ("xyz", "ssd300 lists them")]
)
def test_a_misspelt_command_is_answered_with_the_nearest(name, hint, capsys):
    assert main([name]) == 2
    assert capsys.readouterr().err == f"error: unknown command '{name}'; {hint}\n"


def test_evaluate_is_train_with_eval_only(monkeypatch):
    calls = []
    monkeypatch.setattr(train, "main", lambda arguments: calls.append(arguments) or 0)
    monkeypatch.setattr("sys.argv", ["ssd300"])
    assert main(["evaluate", "--config", "a.yaml"]) == 0
    assert calls == [["--eval-only", "--config", "a.yaml"]]


def test_usage_names_the_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["ssd300"])
    with pytest.raises(SystemExit):
        main(["check-data", "--help"])
    assert capsys.readouterr().out.startswith("usage: ssd300 check-data ")
