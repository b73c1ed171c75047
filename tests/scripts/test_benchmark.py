import json
import subprocess
from functools import partial

import pytest
import torch
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from scripts import benchmark
from scripts.benchmarks import architectures, cases, metric, networks
from scripts.benchmarks.measuring import Setting
from ssd.architecture import ARCHITECTURES
from ssd.model import SSD
from tests.helpers.paths import ROOT
from tests.helpers.processes import Process

EVERY = ["data", "step", "loss", "predict", "detect"]


@pytest.fixture
def command(monkeypatch, shapes_root, tmp_path):
    """Return a function that runs the benchmark on the shapes with small networks and few classes, and returns its rows."""
    monkeypatch.setattr(networks, "SSD", partial(SSD, width=0.05))
    monkeypatch.setattr(networks, "ssd300_vgg16", ssdlite320_mobilenet_v3_large)  # same class as torchvision's SSD300
    monkeypatch.setattr(networks, "NUM_CLASSES", 5)
    monkeypatch.setattr(subprocess, "Popen", Process)

    def run(*arguments: str) -> list[dict]:
        monkeypatch.chdir(ROOT)
        output = tmp_path / "figures.json"
        arguments = (f"data.root={shapes_root}", "--rounds", "1", "--json", str(output), *arguments)
        assert benchmark.main(["--config", "configs/quickstart.yaml", "--device", "cpu", *arguments]) == 0
        return json.loads(output.read_text())

    return run


# The other cases always use float32.
@pytest.mark.parametrize("precision, ways, only", [(torch.float32, 2, EVERY), (torch.bfloat16, 4, ["step", "predict"])])
def test_every_case_compares_ours_with_the_others(command, precision, ways, only, monkeypatch, capsys):
    monkeypatch.setattr(cases, "choose_precision", lambda *_: precision)
    measured = command("--only", ",".join(only), "--batch-size", "2")
    variants: dict[str, list[str]] = {}
    for row in measured:
        variants.setdefault(row["case"].split(",")[0], []).append(row["variant"])
        assert row["rate"] * row["seconds"] == pytest.approx(16 if row["case"] == "data" else 2)
        assert row["ratio"] == pytest.approx(row["seconds"] / ours(measured, row["case"]))
    variants["predict"] = [name for name in variants["predict"] if "OpenVINO" not in name]  # optional
    counts = {"data": 3, "step": 2 + ways, "loss": 3, "predict": 3 + ways + (precision != torch.float32), "detect": 4}
    assert {case: len(names) for case, names in variants.items()} == {case: counts[case] for case in only}
    for case in ("step", "predict"):
        assert sum("torchvision" in name for name in variants[case]) == ways
        rows = [row for row in measured if row["case"].startswith(case) and row["variant"].startswith("torchvision")]
        (best,) = (row for row in rows if row["is_best"])
        assert best["seconds"] == min(row["seconds"] for row in rows)
    shown = capsys.readouterr().out
    assert torch.backends.cpu.get_cpu_capability() in shown.splitlines()[0]
    assert shown.count("its best") == 2


def ours(measured: list[dict], case: str) -> float:
    return next(row["seconds"] for row in measured if row["case"] == case and row["variant"] == "ours")


def test_every_architecture_is_compared_with_both_networks_of_torchvision(command, monkeypatch, capsys):
    monkeypatch.setattr(cases, "choose_precision", lambda *_: torch.bfloat16)
    monkeypatch.setattr(architectures, "INFERENCE", (1, 2))
    few = {name: ARCHITECTURES[name] for name in ("ssd300", "ssdlite320_mobilenet_v3")}
    monkeypatch.setattr(architectures, "ARCHITECTURES", few)
    measured = command("--only", "architectures", "--batch-size", "2")
    names = [*few, "torchvision, SSD300", "torchvision, SSDLite320"]
    labels = ["step, batch 2", "predict, batch 1", "predict, batch 2"]
    assert [(row["case"], row["network"]) for row in measured] == [(label, name) for label in labels for name in names]
    for label in labels:
        seconds = {row["network"]: row["seconds"] for row in measured if row["case"] == label}
        for row in measured:
            if row["case"] == label:
                assert row["of_ssd300"] == pytest.approx(seconds["torchvision, SSD300"] / row["seconds"])
                assert row["of_ssdlite"] == pytest.approx(seconds["torchvision, SSDLite320"] / row["seconds"])
                assert row["rate"] * row["seconds"] == pytest.approx(int(label[-1]))
    settings = {row["setting"] for row in measured if row["network"].startswith("torchvision")}
    assert settings <= {f"{dtype}, {form}" for dtype in ("float32", "bfloat16") for form in ("contiguous", "channels_last")}
    table = capsys.readouterr().out.splitlines()[-len(names) - 2 :]
    assert table[:2] == [f"| | {' | '.join(labels)} |", "|---|---|---|---|"]
    for name, line in zip(names, table[2:], strict=True):
        assert line.startswith((f"| {name} | ", f"| `{name}` | "))
        assert line.count(" ×, ") == 3
    assert "; 1.00 ×, " in table[-2]
    assert " ×, 1.00 × (" in table[-1]


def test_training_and_start_up(command, monkeypatch):
    measured = command("--only", "train,start", "--batch-size", "2", "model.width=0.05", "data.workers=1")
    assert [row["variant"] for row in measured] == ["ours", "floor: its step alone", "ours"]
    assert all(row["seconds"] > 0 for row in measured)


def test_the_loop_over_detections_gives_our_ap(monkeypatch):
    """The peer of case `eval` does the same work."""
    monkeypatch.setattr(metric, "EVAL_IMAGES", 60)
    monkeypatch.setattr(metric, "EVAL_DETECTIONS", 2000)
    results = {}

    def run_once(runs, *_):
        return {name: results.setdefault(name, run()) and 1.0 for name, run in runs.items()}

    monkeypatch.setattr(metric, "measure", run_once)
    monkeypatch.setattr(metric, "rows", lambda *_: [])
    metric.bench_eval(Setting(*[None] * 4, 1, *[None] * 4), 1)
    assert results["ours"].mean_ap == pytest.approx(results["loop over classes and detections"], abs=1e-6)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--only", "step,speed"], "unknown: 'speed'; expected some of data, step"),
        (["--batch-size", "8,x"], "expected an integer ≥ 1"),
        (["--batch-size", "0"], "expected an integer ≥ 1"),
        (["--rounds", "0"], "expected an integer ≥ 1"),
    ],
)
def test_invalid_options(arguments, expected, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert expected in capsys.readouterr().err


def test_every_case_has_a_batch_size():
    assert list(benchmark.BATCH_SIZES) == list(cases.CASES)
