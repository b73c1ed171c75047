import importlib

import pytest

import train
from tests.helpers.paths import ROOT

SCRIPTS = {path.stem for path in (ROOT / "scripts").glob("*.py")} - {"run_onnx", "ssd"}  # these two parse no arguments
COMMANDS = ["train", *(f"scripts.{name}" for name in sorted(SCRIPTS))]


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_arguments_are_reported_on_one_line(command, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        importlib.import_module(command).main(["--no-such-option"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith("; see --help")


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ("--epochs 10 --batch-size=16", "write train.epochs=10 train.batch_size=16"),
        ("-b 16 --lr0 0.01", "write train.batch_size=16 train.lr=0.01"),
        ("--device cpu --imgsz 640", "write device=cpu; the input size belongs to model.architecture (ssd300: 300"),
        ("--weights a.pt train.lr=1 --output-dir x", "write model.init_from=a.pt output_dir=x"),
        ("--train.lr 3 --amp", "write train.lr=3 train.precision=..."),
    ],
)
def test_options_that_are_configuration_entries_get_advice(arguments, advice, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        train.main(["--config", "c.yaml", *arguments.split()])
    (line,) = capsys.readouterr().err.splitlines()
    assert advice in line
