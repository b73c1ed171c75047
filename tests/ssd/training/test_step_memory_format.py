"""The memory format of training: all follows it, and a checkpoint does not tell which it was."""

from pathlib import Path

import pytest
import torch

from ssd.batch import Batch, pad_targets
from ssd.config.schema import Config, PostprocessConfig
from ssd.inference.predict import PixelModel, predict
from ssd.model import SSD300
from ssd.preprocessing import IMAGENET
from ssd.system import device
from ssd.training.build import build_step, place
from ssd.training.run import Run
from ssd.training.step import TrainStep
from ssd.weights.checkpoint import TrainState, digest, load_checkpoint, save_checkpoint
from tests.helpers.runs import schedule_of

FORMATS = {"AVX2": torch.contiguous_format, "AVX512": torch.channels_last}
OTHER = {"AVX2": "AVX512", "AVX512": "AVX2"}


@pytest.fixture(autouse=True)
def _small_is_wide(monkeypatch):
    monkeypatch.setattr(device, "WIDE", 0.05)


def step_of(capability: str, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> TrainStep:
    """The training step of a small network, in float32 on such a processor."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    data = {"classes": ["a", "b"], "train": [{"path": "x"}], "val": [{"path": "x"}]}
    options = {"width": 0.05, "pretrained": "none"}
    run = Run.alone(Config.model_validate({"data": data, "model": options, "train": {"ema": 0.9}}))
    torch.manual_seed(seed)
    model = SSD300(3, width=0.05)
    place(run, model, None)
    return build_step(run, model, IMAGENET, schedule_of(lr=1e-3))


def batch_of(number: int) -> Batch:
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (2, 300, 300, 3), dtype=torch.uint8, generator=generator)
    return Batch(images, pad_targets([torch.tensor([[0.1, 0.1, 0.6, 0.7, 0]]), torch.zeros(0, 5)]), torch.arange(2))


@pytest.mark.parametrize("capability", FORMATS)
def test_input_activations_weights_and_gradients_have_it(capability, monkeypatch):
    step = step_of(capability, monkeypatch)
    seen: list[torch.Tensor] = []
    for name in ("backbone.conv1_1", "backbone.conv3_3", "extras.conv7_2"):
        step.model.get_submodule(name).register_forward_hook(lambda _, args, output: seen.extend([args[0], output]))
    step.model.backbone.conv3_3.conv.weight.register_hook(seen.append)
    step([batch_of(0)], 0)
    weight = step.model.backbone.conv3_3.conv.weight
    average = step.updater.ema.state["backbone.conv3_3.conv.weight"]
    seen += [weight, average, step.updater.optimizer.state[weight]["momentum_buffer"]]
    assert len(seen) == 10
    assert all(tensor.is_contiguous(memory_format=FORMATS[capability]) for tensor in seen)
    assert not any(tensor.is_contiguous(memory_format=FORMATS[OTHER[capability]]) for tensor in seen)


def test_evaluation_is_in_channels_last_in_either(monkeypatch):
    step = step_of("AVX2", monkeypatch)
    seen: list[torch.Tensor] = []
    step.model.backbone.conv3_3.register_forward_hook(lambda _, args, output: seen.extend([args[0], output]))
    predict(PixelModel(step.model.eval(), IMAGENET, step.device, torch.float32), batch_of(0).images, PostprocessConfig())
    assert len(seen) == 2
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in seen)


@pytest.mark.parametrize("capability", FORMATS)
def test_a_checkpoint_of_one_resumes_in_the_other(capability, monkeypatch, tmp_path: Path):
    step = step_of(capability, monkeypatch)
    step([batch_of(0)], 0)
    state = TrainState(classes=["a", "b"], preprocessing=IMAGENET.to_plain(), config={}, iteration=1, **step.updater.state())
    save_checkpoint(tmp_path / "last.pt", state)
    other = step_of(OTHER[capability], monkeypatch, seed=1)
    assert other.updater.restore(load_checkpoint(tmp_path / "last.pt")) == []
    assert digest(other.updater.state()) == digest(step.updater.state())
    for iteration in (1, 2):
        expected, taken = (each([batch_of(iteration)], iteration) for each in (step, other))
        torch.testing.assert_close(taken.losses, expected.losses)
        torch.testing.assert_close(taken.grad_norm, expected.grad_norm, rtol=1e-4, atol=1e-5)
