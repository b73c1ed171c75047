"""`train.threads`: the threads of a run, of its dry run and of its proposal, on a machine of two cores with a fake load."""

import pytest
import torch

import train
from ssd.autoconfig import timing
from ssd.autoconfig.proposal import render, run_settings, trial_settings
from ssd.autoconfig.recipes import SLIM, Length
from ssd.autoconfig.starts import StartPlan
from ssd.autoconfig.timing import Timings, try_out
from ssd.config.file import load_config
from ssd.inference.predict import PixelModel
from ssd.system import threads
from ssd.system.machine import OtherLoad
from ssd.training import run_log
from ssd.training.datasets import load_data
from ssd.training.run import Run
from ssd.training.step import TrainStep
from ssd.weights.checkpoint import load_checkpoint
from tests.helpers.runs import without_timing, write_config

ADVICE = "train.threads=free is faster while they run"


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(threads, "num_cores", lambda: 2)
    monkeypatch.setattr(threads, "PERIOD", 0.0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def used(monkeypatch):
    """The number of threads of each training step and of each batch of an evaluation."""
    numbers = {"step": [], "evaluation": []}
    for owner, name in ((TrainStep, "step"), (PixelModel, "evaluation")):
        monkeypatch.setattr(owner, "__call__", counted(owner.__call__, numbers[name]))
    return numbers


def counted(call, numbers):
    def call_and_count(*arguments, **options):
        numbers.append(torch.get_num_threads())
        return call(*arguments, **options)

    return call_and_count


@pytest.fixture
def busy(monkeypatch):
    """Another program uses a whole core."""
    monkeypatch.setattr(OtherLoad, "cores", lambda self: 1.0)


@pytest.fixture
def config(tmp_path, shapes_root):
    return write_config(tmp_path, shapes_root, train={"iterations": 4}, data={"workers": 0})


@pytest.mark.usefixtures("busy")
def test_a_run_on_free_cores(config, used, capsys):
    assert train.main(["--config", str(config), "train.threads=free"]) == 0
    assert used == {"step": [1] * 4, "evaluation": [1] * 2}
    assert torch.get_num_threads() == 2
    shown = capsys.readouterr().out
    assert "other programs" not in shown
    assert "no effect" not in shown


@pytest.mark.usefixtures("busy")
def test_by_default_the_number_stays_and_a_warning_says_so(config, used, capsys):
    assert train.main(["--config", str(config)]) == 0
    assert set(used["step"] + used["evaluation"]) == {2}
    assert capsys.readouterr().out.count(ADVICE) == 1


def test_a_free_machine_is_no_reason_for_a_warning(config, used, capsys, monkeypatch):
    monkeypatch.setattr(OtherLoad, "cores", lambda self: 0.1)
    assert train.main(["--config", str(config)]) == 0
    assert set(used["step"] + used["evaluation"]) == {2}
    assert "other programs" not in capsys.readouterr().out


@pytest.mark.usefixtures("busy")
def test_a_run_with_a_number_of_threads_is_the_same_bit_for_bit(tmp_path, shapes_root, used):
    """Whatever PyTorch would use, and whatever else runs: the weights are those of a run with OMP_NUM_THREADS=2."""
    histories, weights = [], []
    for name, usual, words in (("a", 2, []), ("b", 1, ["train.threads=2"])):
        config = write_config(tmp_path / name, shapes_root, train={"iterations": 4}, data={"workers": 0})
        torch.set_num_threads(usual)
        assert train.main(["--config", str(config), *words]) == 0
        weights.append(load_checkpoint(tmp_path / name / "run/checkpoints/last.pt").model)
        histories.append(without_timing(tmp_path / name))
    assert set(used["step"]) == {2}
    assert histories[0] == histories[1]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_free_says_where_it_has_no_effect(config, capsys):
    torch.set_num_threads(1)
    assert train.main(["--config", str(config), "train.threads=free"]) == 0
    assert "warning: train.threads=free has no effect here" in capsys.readouterr().out


@pytest.mark.parametrize("number, is_warned", [(2, False), (3, True)])
def test_more_threads_than_cores_are_warned_of(config, capsys, monkeypatch, number, is_warned):
    monkeypatch.setattr(run_log, "num_cores", lambda: 2)
    assert train.main(["--config", str(config), f"train.threads={number}", "train.iterations=1"]) == 0
    shown = capsys.readouterr().out
    assert ("warning: train.threads=3: 3 threads wait for one another on 2 core(s)" in shown) == is_warned
    assert ("train.threads" in shown) == is_warned


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("setting", ["all", "free"])
def test_a_dry_run_beside_another_program_says_so(config, capsys, setting):
    assert train.main(["--config", str(config), "--dry-run", f"train.threads={setting}"]) == 0
    shown = capsys.readouterr().out
    assert "warning: other programs used 1.0 of " in shown
    assert (ADVICE in shown) == (setting == "all")


@pytest.mark.usefixtures("busy")
def test_a_trial_times_what_free_cores_do(config, used, monkeypatch):
    """The threads are adapted before the first timed step, and are back afterwards, for the next trial."""
    monkeypatch.setattr(timing, "SECONDS", 0.1)
    loaded = load_config(config, ["train.threads=free"])
    timings = try_out(loaded, None, load_data(Run.alone(loaded)), 0.0)
    assert timings.warning
    assert set(used["step"] + used["evaluation"]) == {1}
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    "device, warning, is_free", [("cpu", "warning: busy", True), ("cpu", "", False), ("cuda", "warning: busy", False)]
)
def test_a_proposal_timed_beside_other_programs_adapts_to_them(device, warning, is_free):
    timings = Timings(8, 1, 1, 1, 1, 1, warning)
    plan = StartPlan(SLIM, timings, Length(1000, 10, 5, 1000.0, 16_000), "why", [])
    text = render(run_settings(plan, device, 200, 50, {"voc": 0.9, "coco": 0.9}))
    assert ("\n  threads: free " in text) == is_free
    assert text.count("train:") == 1


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_trials_adapt_on_a_cpu(device):
    settings, _ = trial_settings(SLIM, device, 200)
    assert ("train.threads" in settings) == (device == "cpu")
