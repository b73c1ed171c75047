"""Processes that train together: what they share, and how they report errors."""

import json
import os
import re
import socket
import sys
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist

from data.loading.dataset import DetectionDataset
from ssd.backbones.conv_block import BatchNorm
from ssd.config.file import load_config, parse_config
from ssd.model import SSD300
from ssd.preprocessing import IMAGENET
from ssd.system import distributed
from ssd.system.distributed import World, is_lost_peer, process_group
from ssd.system.errors import UsageError
from ssd.system.stop import Stopped
from ssd.training import build
from ssd.training.datasets import eval_dataset, load_part
from ssd.training.run import Run
from ssd.training.validate import evaluate_photos
from ssd.weights.checkpoint import TrainState
from tests.helpers.paths import ROOT
from tests.helpers.processes import completed, start
from tests.helpers.runs import TWO_PROCESSES, write_config

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
TOGETHER = """
import json, signal, sys, time
from datetime import timedelta
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
import torch.distributed as dist
from data.dataset.annotation_loader import LoadedAnnotations
from data.dataset.errors import DataError
from ssd.config import load_config
from ssd.system.distributed import TIMEOUT, first_to_say
from ssd.system.stop import Stopped, StopRequest
from ssd.training.build import build_model
from ssd.training.datasets import _require_same_photos, _settle, load_data, eval_dataset
from ssd.training.validate import evaluate_photos
from ssd.training.run import open_run, require_same_config
from ssd.system.errors import UsageError

# The public name exists only in newer versions of PyTorch, which deprecate the other.
set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
config = load_config(sys.argv[1])
found = {}
with open_run(config, StopRequest()) as run:
    second = run.world.rank == 1
    # A process that takes longer than the usual timeout.
    set_timeout(timedelta(seconds=1))
    time.sleep(2 * second)
    _settle(run, [], None)
    set_timeout(TIMEOUT)
    found["ranks"] = run.world.all_gather(run.world.rank)
    found["same text"] = run.world.all_gather(first_to_say("the same"))
    found["own text"] = first_to_say(f"of {run.world.rank}")
    require_same_config(run)
    given = run.config
    refused = found["refused"] = []
    for change in ({"lr": 0.5}, {"batch_size": 8}, {"teacher": "a.pt"}) if second else ({}, {}, {}):
        run.set_train(**change)
        try:
            require_same_config(run)
        except UsageError as error:
            refused.append(str(error))
        run.config = given
    photos = load_data(run).val
    older = LoadedAnnotations(photos.select(range(7, -1, -1)) if second else photos, (), (), 0, 8)
    try:
        _require_same_photos(run, {"train": LoadedAnnotations(photos, (), (), 0, 8), "val": older})
    except DataError as error:
        found["other photos"] = str(error)
    model, preprocessing = build_model(run, None)
    samples = eval_dataset(run, photos, preprocessing)
    norm = model.backbone.conv1_1.norm
    norm.running_mean.fill_(run.world.rank)
    evaluation = evaluate_photos(run, samples, preprocessing, model)
    found["validation loss"] = evaluation.loss
    found["detections"] = [len(detections.scores) for detections in evaluation.detections]
    found["statistics"] = norm.running_mean.unique().tolist()
    run.config = run.config.model_copy(
        update={"data": run.config.data.model_copy(update={"root": "/nowhere"})} if second else {}
    )
    try:
        load_data(run)
    except DataError as error:
        found["no data"] = str(error)
    run.stop.signal = signal.SIGTERM if second else 0
    try:
        evaluate_photos(run, samples, preprocessing, model)
    except Stopped as stopped:
        found["stopped"] = stopped.exit_code
    Path(sys.argv[1]).with_name(f"{run.world.rank}.json").write_text(json.dumps(found))
"""


def test_two_processes_agree(tmp_path, shapes_root):
    config = write_config(tmp_path, shapes_root, data={"workers": 0, "tiles": {"size": 300}}, model={"width": 0.05})
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    words = [*TWO_PROCESSES, str(script), str(config), str(ROOT)]
    process = start(words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, output + errors
    assert "Warning" not in errors
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    run = Run.alone(load_config(config, []))
    model, preprocessing = build.build_model(run, None)
    alone = evaluate_photos(run, eval_dataset(run, load_part(run, "val"), preprocessing), preprocessing, model)
    for each in found:
        assert each["ranks"] == [0, 1]
        assert sorted(each["same text"]) == [False, True]
        assert each["own text"]
        assert each["refused"] == [
            "train.lr: process 0 has 0.001, process 1 has 0.5; give all processes the same configuration",
            "train.batch_size: process 0 has 4, process 1 has 8; give all processes the same configuration",
            "train.teacher: process 0 has none, process 1 has a teacher; give all processes the same configuration",
        ]
        assert re.match(r"data.val: process 1 has different photos or annotations \(\w+\) than process 0", each["other photos"])
        assert each["statistics"] == [0.0]  # from the main process, which saves the checkpoint
        assert each["no data"].startswith("process 1: /nowhere/shapes: no such folder")
        assert each["stopped"] == 143
        assert each["detections"] == [len(detections.scores) for detections in alone.detections]
        assert each["validation loss"] == pytest.approx(alone.loss, rel=1e-6)
    assert found[0]["validation loss"] == found[1]["validation loss"]


def connected(monkeypatch: pytest.MonkeyPatch, host: str, port: int) -> None:
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": host, "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    with process_group(World(0, 2), CPU):
        pass


def test_all_reduce_leaves_its_argument_unchanged(monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.mul_(2))
    value = torch.tensor(3.0)
    for world, expected in ((World(), 3), (World(0, 2), 6)):
        assert world.all_reduce(value).add_(0) == expected
        assert world.all_reduce(value) is not value
        assert value == 3


def test_port_in_use_is_reported(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"process 0 of 2 cannot connect .* localhost:{port} .*in use") as caught:
            connected(monkeypatch, "localhost", port)
    assert len(str(caught.value).splitlines()) == 1


def test_unknown_host_is_reported(monkeypatch):
    with pytest.raises(UsageError, match=r"cannot connect to the others at nobody\.invalid:29511"):
        connected(monkeypatch, "nobody.invalid", 29511)


def test_lost_connection_means_lost_peer():
    two = World(0, 2)
    gone = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:42"
    assert is_lost_peer(RuntimeError(gone), two)
    assert is_lost_peer(dist.DistBackendError("NCCL communicator was aborted"), two)
    assert not is_lost_peer(RuntimeError(gone), World())
    assert not is_lost_peer(RuntimeError("[enforce fail at gloo/allreduce.cc:42] opts.elements > 0"), two)


@pytest.mark.parametrize(("before", "accumulate"), [(1, 2), (8, 4)], ids=["as before", "of other processes"])
def test_automatic_accumulation_depends_on_the_number_of_processes(monkeypatch, before, accumulate):
    monkeypatch.setattr(build, "fewest_steps", lambda *_: 4)
    source = [{"path": "shapes"}]
    run = Run.alone(parse_config({"data": {"train": source, "val": source}, "train": {"batch_size": "auto"}}))
    state = TrainState({}, [], {}, {"train": {"batch_size": 64, "accumulate": 2}}, num_processes=before)
    model = SSD300(2, width=0.05)
    build.settle_batch_size(run, model, IMAGENET, cast("DetectionDataset", SimpleNamespace(cache=None)), state)
    assert run.batch_size == 64  # the effective batch is unchanged
    assert run.config.train.accumulate == accumulate


def test_batch_normalisation_is_synchronised_only_on_gpus(monkeypatch):
    def norms(device: str, size: int) -> set[type]:
        run = cast("Run", SimpleNamespace(world=World(0, size), device=torch.device(device), say=lambda _: None))
        model = SSD300(2, batch_norm="backbone", width=0.05)
        build.synchronise_norms(run, model)
        return {type(module) for module in model.modules() if "BatchNorm" in type(module).__name__}

    assert norms("cuda", 2) == {torch.nn.SyncBatchNorm}
    assert norms("cuda", 1) == norms("cpu", 2) == {BatchNorm}


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A fake process group that records its options and how often it was destroyed."""
    made: dict[str, Any] = {"destroyed": 0}
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(None, 0, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: made.update(backend=backend, **options))
    monkeypatch.setattr(dist, "new_group", lambda **options: made.update(patient=options))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: made.update(destroyed=made["destroyed"] + 1))
    return made


def test_process_group_timeouts(group, monkeypatch):
    connected(monkeypatch, "localhost", 1)
    assert group["timeout"] == distributed.TIMEOUT <= timedelta(hours=1)
    assert group["patient"] == {"backend": "gloo", "timeout": distributed.PATIENT_TIMEOUT}
    assert group["destroyed"] == 1


def test_process_group_is_not_destroyed_after_an_error(group, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    for error, destroyed in ((RuntimeError(), 0), (UsageError(), 0), (Stopped(15), 1)):
        with pytest.raises(type(error)), process_group(World(0, 2), CPU):
            raise error
        assert group["destroyed"] == destroyed


FAILING = """
import sys, time
sys.path.insert(0, sys.argv[1])
import torch, torch.distributed as dist
from ssd.system.command import command
from ssd.system import distributed
from ssd.system.distributed import World, process_group
from ssd.system.errors import UserError

dist.destroy_process_group = lambda: time.sleep(1000)  # as under NCCL

@command()
def main():
    with process_group(World(0, 2), torch.device("cpu")):
        raise {"user": UserError("that is wrong"), "program": KeyError("a fault")}[sys.argv[2]]

dist.init_process_group = lambda *_, **__: None
dist.new_group = lambda **_: None
dist.is_initialized = lambda: True
import atexit
atexit.register(time.sleep, 1000)
sys.exit(main())
"""


@pytest.mark.parametrize("kind, code, text", [("user", 2, "error: that is wrong"), ("program", 1, "KeyError: 'a fault'")])
def test_a_failing_process_reports_and_exits(tmp_path, kind, code, text):
    (tmp_path / "failing.py").write_text(FAILING)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    around = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "1"}
    words = [sys.executable, str(tmp_path / "failing.py"), str(ROOT), kind]
    done = completed(words, timeout=60, env={**os.environ, **around})
    assert done.returncode == code
    assert done.stderr.splitlines()[-1] == text
