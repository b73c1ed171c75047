"""Error messages and exit codes of commands."""

import pytest
import torch

import train
from scripts import detect
from ssd.system.command import command, explain


def test_out_of_memory_advice_of_the_command(capsys):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    @command(less_memory="try a smaller --batch-size")
    def told() -> int:
        raise error

    assert told() == 1
    assert capsys.readouterr().err == "error: CUDA out of memory. Tried to allocate 2.00 GiB; try a smaller --batch-size\n"
    assert explain(error) == (["error: CUDA out of memory. Tried to allocate 2.00 GiB"], 1)


@pytest.mark.parametrize(
    "main, words, advice", [(train.main, ["--config", "x"], "eval.batch_size"), (detect.main, ["x", "y"], "--batch-size")]
)
def test_out_of_memory_advice(monkeypatch, capsys, main, words, advice):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setitem(main.__wrapped__.__globals__, "parse_arguments", full)
    assert main(words) == 1
    assert advice in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libGL.so.1: cannot open shared object file: No such file or directory"),
        ImportError("libgthread-2.0.so.0: cannot open shared object file: No such file or directory", name="cv2"),
        ModuleNotFoundError("No module named 'cv2'", name="cv2"),
    ],
)
def test_opencv_load_error_is_one_line(error):
    (line,), code = explain(error) or ([""], 0)
    assert code == 2
    assert line.startswith(f"error: OpenCV cannot be loaded ({error}); ")
    assert "opencv-python-headless" in line
    assert explain(ImportError("another", name="ssd")) is None


def test_missing_export_library_is_named():
    error = ModuleNotFoundError("No module named 'onnx'", name="onnx")
    expected = "error: onnx is not installed, which this needs; pip install onnx onnxscript onnxruntime"
    assert explain(error) == ([expected], 2)
