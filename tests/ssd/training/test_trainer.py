"""The update of the weights, in every precision, with gradients made up."""

import math
from pathlib import Path

import pytest
import torch

from ssd.loss import MultiBoxLoss
from ssd.preparation import IMAGENET
from ssd.system.distributed import World
from ssd.training.optimizer import WeightAverage, make_optimizer
from ssd.training.trainer import NonFiniteError, Schedule, Trainer
from ssd.weights.checkpoint import load_checkpoint

CPU = torch.device("cpu")
SCHEDULE = Schedule(
    iterations=100, num_photos=8, batch_size=4, accumulate=1, lr=0.1, warmup=0, shape="milestones", milestones=(),
    log_every=10, eval_every=100, checkpoint_every=100, keep=0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _filled_memory():
    """What is made of memory as it is holds NaN, as it may."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def trainer_of(folder: Path, kind: str, dtype: torch.dtype, clip: float | None = None) -> Trainer:
    """A trainer of a single convolution."""
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 4, 3)
    return Trainer(
        model,  # pyright: ignore[reportArgumentType]
        MultiBoxLoss(),
        make_optimizer(model, kind, 0.1, 0.9, 0.01),
        IMAGENET,
        SCHEDULE,
        folder,
        device=CPU,
        dtype=dtype,
        world=World(),
        average=WeightAverage(model, 0.9),
        clip_grad_norm=clip,
        compiled=False,
        identity={"classes": ["a"], "config": {}},
    )


def update(trainer: Trainer, gradient: float, loss: float = 1.0) -> list[torch.Tensor]:
    """One update with a gradient of that value everywhere, as backward() leaves it; the weights after it."""
    parameters = list(trainer.model.parameters())
    for parameter in parameters:
        parameter.grad = trainer.scaler.scale(torch.full_like(parameter, gradient))
    trainer._update(torch.tensor([loss, 0.0]))
    trainer.iteration += 1
    return [parameter.detach().clone() for parameter in parameters]


def is_same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, a, b))


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_overflows_before_between_and_after_good_steps_leave_no_trace(tmp_path, kind, clip):
    """In float16 the first steps overflow, until the scale has fallen; as if they had never been, good ones follow."""
    trainer, smooth = (trainer_of(tmp_path, kind, torch.float16, clip) for _ in range(2))
    start = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    for _ in range(3):
        assert is_same(update(trainer, math.inf), start)
    assert trainer.scaler.get_scale() == 2**13
    good = update(trainer, 0.3)
    assert is_same(good, update(smooth, 0.3))
    assert not is_same(good, start)
    assert is_same(update(trainer, math.nan), good)
    assert is_same(update(trainer, -0.2), update(smooth, -0.2))
    trainer.save()
    state = load_checkpoint(tmp_path / "last.pt")
    kept = [*state.model.values(), *(value for entry in state.optimizer["state"].values() for value in entry.values())]
    assert len(kept) == {"sgd": 2 + 2, "adamw": 2 + 6}[kind]
    assert all(value.isfinite().all() for value in kept)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_first_step_is_pytorchs(tmp_path, kind, dtype):
    trainer = trainer_of(tmp_path, kind, dtype)
    layer = torch.nn.Conv2d(3, 4, 3)
    layer.load_state_dict(trainer.model.state_dict())
    groups = [{"params": [layer.weight], "weight_decay": 0.01}, {"params": [layer.bias], "weight_decay": 0.0}]
    if kind == "sgd":
        groups[1]["lr"] = 0.2
        plain = torch.optim.SGD(groups, lr=0.1, momentum=0.9, foreach=False)
    else:
        plain = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.999), foreach=False)
    trainer.optimizer.param_groups[1]["lr"] = groups[1].get("lr", 0.1)
    for gradient in (0.3, -0.1, 0.7):
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        plain.step()
        torch.testing.assert_close(update(trainer, gradient), [parameter.detach() for parameter in layer.parameters()])


@pytest.mark.parametrize("gradient", [math.inf, math.nan])
def test_a_gradient_that_no_scale_holds_ends_a_float16_run(tmp_path, gradient):
    trainer = trainer_of(tmp_path, "sgd", torch.float16)
    before = update(trainer, 0.5)
    for _ in range(17):  # from 65536 to 0.5
        assert is_same(update(trainer, gradient), before)
        assert trainer.fault_at == 0
    assert trainer.scaler.get_scale() == 0.5
    assert is_same(update(trainer, gradient), before)
    assert is_same(update(trainer, 0.5), before)  # as they are, and ever after
    with pytest.raises(NonFiniteError, match="iteration 19"):
        trainer.save()
    assert not (tmp_path / "last.pt").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_after_a_loss_that_is_not_finite_the_weights_stay(tmp_path, dtype, loss):
    trainer = trainer_of(tmp_path, "sgd", dtype)
    before = update(trainer, 0.5)
    for faulty in (loss, 1.0, 1.0):
        assert is_same(update(trainer, 0.5, faulty), before)
    with pytest.raises(NonFiniteError, match="iteration 2"):
        trainer._check_finite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_finite_is_a_fault_in_other_precisions(tmp_path, dtype):
    trainer = trainer_of(tmp_path, "adamw", dtype)
    before = update(trainer, 0.5)
    assert is_same(update(trainer, math.nan), before)
    assert trainer.fault_at == 2


def test_state_that_a_checkpoint_lacks_begins_at_zero(tmp_path):
    """As that of a run without momentum, gone on with some."""
    trainer = trainer_of(tmp_path, "sgd", torch.float16)
    state = trainer.state()
    state.optimizer["state"] = {}
    trainer.restore(state)
    start = update(trainer, math.inf)
    after = update(trainer, 1.0)
    torch.testing.assert_close(after[1], start[1] - trainer.optimizer.param_groups[1]["lr"])
