"""scripts/benchmark_gpu.py in miniature on a CPU: each part gives its rows, and what fails gives its error line."""

import json
from pathlib import Path

import pytest

from scripts import benchmark_gpu
from scripts.benchmark_gpu import with_table
from tests.helpers.paths import ROOT
from tests.helpers.processes import Process

ON_A_CPU = ["--config", str(Path(ROOT) / "configs/quickstart.yaml"), "--device", "cpu", "--only", "tests"]


@pytest.fixture
def measured(monkeypatch, shapes_root, tmp_path):
    """Return a function that runs some parts on the shapes with a tiny network, and returns their results."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(benchmark_gpu.subprocess, "Popen", Process)

    def run(*arguments: str) -> dict:
        output = tmp_path / "gpu.json"
        small = [f"data.root={shapes_root}", "model.width=0.05", "model.pretrained=none", "data.workers=0"]
        short = ["--device", "cpu", "--batch-size", "2", "--rounds", "1", "--iterations", "2", "--minutes", "1"]
        words = ["--config", "configs/quickstart.yaml", "--json", str(output), *short, *arguments, *small]
        assert benchmark_gpu.main(words) == 0
        return json.loads(output.read_text())

    return run


def test_each_part_adds_its_rows_and_the_page_gets_a_table(measured, tmp_path):
    page = tmp_path / "performance.md"
    page.write_text("# Performance\n\n## GPU\n\nNot measured yet.\n\n## Memory\n\nSmall.\n")
    (tests,) = measured("--only", "tests")["tests"]
    assert " skipped in " in tests["result"]
    results = measured("--only", "precision,shared", "--docs", str(page))
    assert set(results) == {"machine", "tests", "precision", "shared"}  # those of the first call are kept
    float32, _, float16 = results["precision"]
    assert float32["images_per_s"] > 0
    assert "mAP@0.5" in float32["result"]
    assert float16["result"].startswith("error: train.precision: float16 needs a GPU")
    (shared,) = results["shared"]
    assert shared["images_per_s"] > 0  # two processes may share a CPU
    text = page.read_text()
    assert "Not measured yet" not in text
    assert text.endswith("\n## Memory\n\nSmall.\n")
    assert f"| 2 iterations in float32 | {float32['result']} |" in text


@pytest.mark.slow
def test_step_loader_and_the_planned_run(measured):
    results = measured("--only", "loader,run")
    assert results["loader"][0]["variant"] == "ours"
    (run,) = results["run"]
    assert "mAP@0.5" in run["result"]
    assert run["seconds"] > 1
    assert run["config"].startswith("#")


def test_a_section_at_the_end_is_replaced_and_a_missing_one_appended():
    assert with_table("a\n\n## GPU\n\nold\n", "new\n") == "a\n\n## GPU\n\nnew\n"
    assert with_table("a\n", "new\n") == "a\n\n## GPU\n\nnew\n"


@pytest.mark.parametrize("content", ["junk", "[1]"])
def test_a_file_of_other_content_is_not_replaced(content, tmp_path, capsys):
    path = tmp_path / "other.json"
    path.write_text(content)
    assert benchmark_gpu.main([*ON_A_CPU, "--json", str(path)]) == 2
    assert capsys.readouterr().err == f"error: --json {path}: is not a file of this command; name another one\n"
    assert path.read_text() == content


def test_files_that_cannot_be_written_are_reported_before_the_measurement(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(benchmark_gpu.PARTS, "tests", None)
    where = str(tmp_path / "none/a.json")
    assert benchmark_gpu.main([*ON_A_CPU, "--json", where]) == 2
    assert capsys.readouterr().err == f"error: --json {where}: no such folder\n"
    page = str(tmp_path / "none.md")
    assert benchmark_gpu.main([*ON_A_CPU, "--json", str(tmp_path / "a.json"), "--docs", page]) == 2
    assert capsys.readouterr().err == f"error: --docs {page}: no such file\n"


def test_without_a_gpu_it_ends_in_one_line(capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert benchmark_gpu.main(["--config", str(Path(ROOT) / "configs/quickstart.yaml")]) == 2
    assert capsys.readouterr().err == "error: device: cuda: PyTorch finds no GPU; set device: cpu or device: auto\n"
