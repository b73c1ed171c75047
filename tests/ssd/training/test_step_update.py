"""The update of the weights, in every precision, with made-up gradients."""

import copy
import math
from dataclasses import replace
from itertools import permutations

import pytest
import torch

from ssd.preprocessing import IMAGENET
from ssd.system import device
from ssd.system.distributed import World
from ssd.training.optimizer import ModelEMA, make_optimizer
from ssd.training.step import Updater
from ssd.weights.checkpoint import TrainState, digest
from tests.helpers.runs import schedule_of


@pytest.fixture(autouse=True)
def _filled_memory():
    """Fill uninitialised memory with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def updater_of(
    kind: str, dtype: torch.dtype, clip: float | None = None, memory_format: torch.memory_format = torch.contiguous_format
) -> Updater:
    """The updates of a single convolution."""
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 4, 3).to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    return Updater(model, make_optimizer(model, kind, 0.1, 0.9, 0.01), schedule_of(), dtype, ModelEMA(model, 0.9), clip)


def update(updater: Updater, gradient: float, loss: float = 1.0, iteration: int = 0) -> list[torch.Tensor]:
    """One update with a gradient of that value everywhere, as backward() leaves it; the weights after it."""
    parameters = list(updater.model.parameters())
    for parameter in parameters:
        parameter.grad = updater.scale(torch.full_like(parameter, gradient))
    updater.step(torch.tensor([loss, 0.0]), iteration)
    assert all(parameter.grad is None for parameter in parameters)  # or the next step's would be added to it
    return [parameter.detach().clone() for parameter in parameters]


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_grad_norm_is_unscaled_and_before_clipping(dtype, clip):
    """112 numbers of 0.3; in float16 times 2^16, and a limit that is far below."""
    updater = updater_of("sgd", dtype, clip)
    for parameter in updater.model.parameters():
        parameter.grad = updater.scale(torch.full_like(parameter, 0.3))
    assert updater.step(torch.ones(2), 0).item() == pytest.approx(0.3 * math.sqrt(112))


def is_same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, a, b))


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_overflows_around_good_steps_leave_no_trace(kind, clip):
    """In float16 the first steps overflow, until the scale has fallen; as if they had never been, good ones follow."""
    updater, smooth = (updater_of(kind, torch.float16, clip) for _ in range(2))
    start = [parameter.detach().clone() for parameter in updater.model.parameters()]
    for _ in range(3):
        assert is_same(update(updater, math.inf), start)
    assert updater.scaler.get_scale() == 2**13
    good = update(updater, 0.3)
    assert is_same(good, update(smooth, 0.3))
    assert not is_same(good, start)
    assert is_same(update(updater, math.nan), good)
    assert is_same(update(updater, -0.2), update(smooth, -0.2))
    state = updater.state()
    kept = [*state["model"].values(), *(value for entry in state["optimizer"]["state"].values() for value in entry.values())]
    assert len(kept) == {"sgd": 2 + 2, "adamw": 2 + 6}[kind]
    assert all(value.isfinite().all() for value in kept)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_first_step_is_pytorchs(kind, dtype):
    updater = updater_of(kind, dtype)
    layer = torch.nn.Conv2d(3, 4, 3)
    layer.load_state_dict(updater.model.state_dict())
    groups = [{"params": [layer.weight], "weight_decay": 0.01}, {"params": [layer.bias], "weight_decay": 0.0}]
    if kind == "sgd":
        groups[1]["lr"] = 0.2
        plain = torch.optim.SGD(groups, lr=0.1, momentum=0.9, foreach=False)
    else:
        plain = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.999), foreach=False)
    for gradient in (0.3, -0.1, 0.7):
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        plain.step()
        torch.testing.assert_close(update(updater, gradient), [parameter.detach() for parameter in layer.parameters()])


def test_the_ema_follows_every_update():
    updater = updater_of("sgd", torch.float32)
    expected = [parameter.detach().clone() for parameter in updater.model.parameters()]
    for iteration in range(3):
        weights = update(updater, 0.3, iteration=iteration)
        decay = (1 + iteration) / (10 + iteration)
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, weights, strict=True)]
    torch.testing.assert_close(list(updater.ema.state.values()), expected)


@pytest.mark.parametrize("gradient", [math.inf, math.nan])
def test_a_gradient_that_overflows_at_every_scale_ends_a_float16_run(gradient):
    updater = updater_of("sgd", torch.float16)
    before = update(updater, 0.5)
    for _ in range(17):  # from 65536 to 0.5
        assert is_same(update(updater, gradient), before)
        assert updater.non_finite_at == 0
    assert updater.scaler.get_scale() == 0.5
    assert is_same(update(updater, gradient, iteration=18), before)
    assert is_same(update(updater, 0.5, iteration=19), before)  # as they are, and ever after
    assert updater.first_non_finite(World()) == 18


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_the_weights_stay_after_a_non_finite_loss(dtype, loss):
    updater = updater_of("sgd", dtype)
    before = update(updater, 0.5)
    for iteration, faulty in enumerate((loss, 1.0, 1.0), start=1):
        assert is_same(update(updater, 0.5, faulty, iteration), before)
    assert updater.first_non_finite(World()) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_non_finite_gradient_is_an_error_in_other_precisions(dtype):
    updater = updater_of("adamw", dtype)
    before = update(updater, 0.5)
    assert is_same(update(updater, math.nan, iteration=1), before)
    assert updater.non_finite_at == 2


def test_missing_optimiser_state_starts_at_zero():
    """As that of a run without momentum, gone on with some."""
    updater = updater_of("sgd", torch.float16)
    state = TrainState(classes=["a"], preprocessing=IMAGENET.to_plain(), config={}, **updater.state())
    state.optimizer["state"] = {}
    updater.restore(state)
    start = update(updater, math.inf)
    after = update(updater, 1.0)
    torch.testing.assert_close(after[1], start[1] - updater.optimizer.param_groups[1]["lr"])


def test_each_missing_part_of_a_state_is_reported():
    updater = updater_of("sgd", torch.float32)
    update(updater, 0.1)
    state = TrainState(classes=["a"], preprocessing=IMAGENET.to_plain(), config={}, iteration=1, **updater.state())
    half, other = updater_of("sgd", torch.float16), updater_of("adamw", torch.float32)
    assert half.restore(state) == ["the checkpoint was not trained in float16: the loss scale starts at 65536"]
    assert other.restore(state) == ["the checkpoint has the state of a different optimiser: AdamW starts afresh"]
    note = "the checkpoint has no moving average: train.ema starts from its weights"
    assert updater.restore(replace(state, average=None)) == [note]
    without = Updater(updater.model, updater.optimizer, schedule_of(), torch.float32)  # that keeps no average needs none
    assert without.restore(state) == []
    update(without, 0.1)
    assert without.state()["average"] is None
    update(half, math.inf)
    halved, fresh = replace(state, **half.state()), updater_of("sgd", torch.float16)
    assert fresh.restore(halved) == []
    assert fresh.scaler.get_scale() == 2**15


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_restoring_and_saving_a_state_changes_nothing(kind):
    """As by a run that was killed in an evaluation: it resumes, evaluates, and writes best.pt before its next step."""
    torch.manual_seed(0)
    before, after = updater_of(kind, torch.float32), updater_of(kind, torch.float32)
    for updater in (before, after):
        updater.schedule = schedule_of(warmup=50)
    for iteration in range(3):
        update(before, 0.1, iteration=iteration)
    saved = TrainState(classes=["a"], preprocessing=IMAGENET.to_plain(), config={}, iteration=3, **before.state())
    assert after.restore(saved) == []
    assert digest(after.state()) == digest(before.state())


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("formats", list(permutations([torch.channels_last, torch.contiguous_format])))
def test_a_state_resumes_in_another_memory_format(kind, formats):
    """As on another processor: the same updates follow, of gradients that differ from place to place."""
    before, after = (updater_of(kind, torch.float32, memory_format=memory_format) for memory_format in formats)

    def three_updates(updater: Updater, first: int) -> None:
        for iteration in range(first, first + 3):
            generator = torch.Generator().manual_seed(iteration)
            for parameter in updater.model.parameters():
                parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))
            updater.step(torch.ones(2), iteration)

    three_updates(before, 0)
    state = TrainState(classes=["a"], preprocessing=IMAGENET.to_plain(), config={}, iteration=3, **before.state())
    assert after.restore(copy.deepcopy(state)) == []
    for updater in (before, after):
        three_updates(updater, 3)
    torch.testing.assert_close(after.state(), before.state())
    assert after.model.weight.is_contiguous(memory_format=formats[1])


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_an_unfused_optimiser_skips_the_same_steps(kind, monkeypatch):
    """That of Apple's GPUs, here on a CPU."""
    fused = updater_of(kind, torch.float32)
    monkeypatch.setattr(device, "APPLE", {"cpu"})
    plain = updater_of(kind, torch.float32)
    assert (fused.optimizer.defaults["fused"], plain.optimizer.defaults["fused"]) == (True, False)
    for iteration, gradient in enumerate((0.3, 0.2, math.inf, 0.1)):  # from the third on the weights stay
        before = [parameter.detach().clone() for parameter in plain.model.parameters()]
        ours, theirs = (update(updater, gradient, iteration=iteration) for updater in (plain, fused))
        assert is_same(before, ours) is (iteration >= 2)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)
