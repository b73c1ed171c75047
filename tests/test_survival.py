"""Failures around a run: killed workers and peers, full and read-only disks, missing data, two runs in one folder."""

import json
import os
import pickle
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from data.loading.workers import Parcel
from scripts import replay, torture
from ssd.training.run_log import RecordFile
from ssd.weights.checkpoint import load_checkpoint
from tests.helpers.paths import ROOT
from tests.helpers.processes import Process, start
from tests.helpers.runs import LONG, TWO_PROCESSES, command, records, run, wait_until, write_config

NARROW = {"pretrained": "none", "width": 0.05}
OFTEN = {"every": 5, "keep": 1}


@contextmanager
def started(config: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> Iterator[Process]:
    """Start a run, and enter the block once it has saved a checkpoint."""
    folder = config.parent / "run"
    words = [*launcher, *command(config, *arguments)[1 if launcher else 0 :]]
    process = start(words, cwd=ROOT, start_new_session=True)
    try:
        wait_until(lambda: (folder / "checkpoints/last.pt").exists() or process.poll() is not None)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def children(process: int) -> list[int]:
    """Return the child processes."""
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def the_line(errors: str) -> str:
    """Return the error line."""
    assert "Traceback" not in errors, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    return line


def test_killed_at_random_moments(capsys, monkeypatch):
    """The short form of `scripts/torture.py --kills 20`."""
    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(torture, "START_UP", 0)  # already imported here
    assert torture.main(["--kills", "2", "--iterations", "6"]) == 0
    assert "2/2 kills survived; weights and metrics equal" in capsys.readouterr().out


def test_torture_reports_differences(tmp_path, shapes_root):
    for name in ("one", "two"):
        config = write_config(tmp_path / name, shapes_root, train={"batch_size": 4, "iterations": 2}, seed=int(name == "two"))
        run(config)
    differences = torture.compare(tmp_path / "one/run", tmp_path / "two/run")
    assert "last.pt: model" in differences
    assert "metrics.jsonl" in differences
    assert torture.compare(tmp_path / "one/run", tmp_path / "one/run") == []


def test_a_killed_worker_ends_the_run_with_one_line_and_a_checkpoint(tmp_path, shapes_root):
    config = write_config(tmp_path, shapes_root, **LONG, checkpoint=OFTEN)
    with started(config, "data.workers=2") as process:
        before = load_checkpoint(tmp_path / "run/checkpoints/last.pt").iteration
        os.kill(children(process.pid)[-1], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"DataLoader worker .* is killed by signal.*fewer data.workers", the_line(errors))
    assert load_checkpoint(tmp_path / "run/checkpoints/last.pt").iteration >= before


def test_a_lost_batch_ends_the_run_with_one_line_and_a_checkpoint(tmp_path, shapes_root, monkeypatch, capfd):
    """A worker has no memory left to send its third batch."""
    packed = []

    def send(parcel: Parcel) -> tuple[Any, ...]:
        packed.append(parcel)
        if len(packed) == 3:
            raise MemoryError("no room")
        return pickle.loads, (parcel.packed,)

    monkeypatch.setattr(Parcel, "__reduce__", send)
    config = write_config(tmp_path, shapes_root, model=NARROW, checkpoint={"every": 100})
    assert train.main(["--config", str(config)]) == 1
    line = the_line(capfd.readouterr().err)
    assert re.search(r"DataLoader worker .*out of memory or of shared memory \(/dev/shm\)\? Try fewer data\.workers", line)
    assert line.endswith("--resume auto")
    last = tmp_path / "run/checkpoints/last.pt"  # missing if the worker failed before the first step ended
    assert not last.exists() or load_checkpoint(last).iteration in (1, 2)


def test_a_run_needs_no_shared_memory(tmp_path, shapes_root):
    """In a container, /dev/shm may be small. Here not even one batch fits into it."""
    config = write_config(tmp_path, shapes_root, model=NARROW, train={"iterations": 3})
    inside = f"mount -t tmpfs -o size=256k tmpfs /dev/shm && exec {shlex.join(command(config, 'data.workers=1'))}"
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*words, "true"], check=False, capture_output=True).returncode:
        pytest.skip("mount namespaces are not allowed here")
    done = subprocess.run([*words, inside], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert len(records(tmp_path, "eval")) == 1


def test_a_dead_process_ends_the_others(tmp_path, shapes_root):
    config = write_config(tmp_path, shapes_root, **LONG, model=NARROW, checkpoint=OFTEN)
    with started(config, "data.workers=0", launcher=TWO_PROCESSES) as process:
        os.kill(children(process.pid)[-1], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert re.search(r"error: process \d of 2: another process of this run has ended.*--resume auto", errors)
    assert load_checkpoint(tmp_path / "run/checkpoints/last.pt").iteration > 0


def limited(config: Path, num_bytes: int, *arguments: str) -> tuple[int, str]:
    """Return exit code and errors of a run with limited file sizes: writing fails midway, as on a full disk."""
    with start(command(config, *arguments), cwd=ROOT) as process:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
        _, errors = process.communicate(timeout=120)
    return process.returncode, errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_a_signal_during_evaluation_stops_soon_and_the_run_resumes(tmp_path, shapes_root, number):
    # One photo per batch: the evaluation of 24 photos takes longer than the signal.
    val = [{"path": "shapes", "split": "train"}]
    config = write_config(tmp_path, shapes_root, train={**LONG["train"], "iterations": 2}, eval={"every": 2, "batch_size": 1})
    words = command(config, f"data.val={json.dumps(val)}")
    with start(words, cwd=ROOT) as process:
        for line in process.stdout:
            if line.startswith("evaluation after"):
                process.send_signal(number)
                asked = time.monotonic()
                break
        output, errors = process.communicate(timeout=30)
        assert time.monotonic() - asked < 5
    assert process.returncode == 128 + number
    assert errors == ""
    assert f"stopped by {number.name}; resume with --resume auto" in output
    assert not records(tmp_path, "eval")
    run(config, "--resume", "auto")
    assert len(records(tmp_path, "eval")) == 1


def test_a_signal_while_loading_data_ends_the_run(tmp_path, shapes_root, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # empty
    folder = tmp_path / "many"
    for part in ("JPEGImages", "Annotations"):
        (folder / part).mkdir(parents=True)
        for path in (shapes_root / "shapes" / part).iterdir():
            for copy in range(100):
                os.link(path, folder / part / f"{copy}_{path.name}")
    config = write_config(tmp_path, tmp_path, data={"train": [{"path": "many"}], "root": str(tmp_path)})
    with start(command(config), cwd=ROOT) as process:
        wait_until(lambda: (tmp_path / "run/.lock").exists())
        process.terminate()
        asked = time.monotonic()
        output, errors = process.communicate(timeout=30)
        assert time.monotonic() - asked < 5
    assert process.returncode == 143, errors
    assert errors == ""
    assert "data: " not in output  # stopped before it had read everything


def test_a_second_signal_exits_at_once(tmp_path, shapes_root):
    config = write_config(tmp_path, shapes_root, train={**LONG["train"], "batch_size": 16}, model={"width": 0.5})
    with start(command(config), cwd=ROOT) as process:
        for line in process.stdout:
            if line.startswith("device:"):
                break
        time.sleep(2)  # until it is in a step, which takes much longer
        process.terminate()
        time.sleep(1.5)
        process.terminate()
        asked = time.monotonic()
        process.wait(timeout=30)
        assert time.monotonic() - asked < 1
        assert process.returncode == 143
        output, _ = process.communicate(timeout=30)  # ends when the workers, which hold the pipes, notice its end
    assert "stopped by" not in output
    assert not (tmp_path / "run/checkpoints/last.pt").exists()


def test_a_request_that_arrives_twice_counts_once(tmp_path, shapes_root):
    """With Ctrl-C under torchrun, the terminal signals the whole group, and then torchrun signals its processes."""
    config = write_config(tmp_path, shapes_root, **LONG, model=NARROW, checkpoint=OFTEN)
    with started(config, "data.workers=1", launcher=TWO_PROCESSES) as process:
        before = load_checkpoint(tmp_path / "run/checkpoints/last.pt").iteration
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert "stopped by SIGINT; resume with --resume auto" in output
    assert load_checkpoint(tmp_path / "run/checkpoints/last.pt").iteration >= before


def test_a_full_disk_leaves_the_earlier_checkpoints(tmp_path, shapes_root):
    config = write_config(tmp_path, shapes_root)
    run(config, "train.iterations=4")
    folder = tmp_path / "run/checkpoints"
    size = (folder / "last.pt").stat().st_size
    before = {path: path.read_bytes() for path in folder.iterdir()}
    code, errors = limited(config, size // 2, "--resume", "auto", "train.iterations=9")
    assert code == 1
    assert re.search(r"checkpoints/.*\.pt: File too large.*--resume auto", the_line(errors))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    run(config, "--resume", "auto", "train.iterations=9")
    assert load_checkpoint(folder / "last.pt").iteration == 9


def test_an_unwritable_record_names_its_file(tmp_path):
    records = RecordFile(tmp_path)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics.jsonl'"):
        records.write("train", 1, 1, {"loss": 1.0})


@pytest.mark.parametrize("folder", ["/proc/run", "{file}/run"], ids=["read only", "below a file"])
def test_an_unwritable_output_dir(tmp_path, shapes_root, folder):
    (tmp_path / "file").write_text("x")
    folder = folder.format(file=tmp_path / "file")
    done = run(write_config(tmp_path, shapes_root), f"output_dir={folder}", code=2)
    assert f"output_dir: {folder}: is not writable" in the_line(done.stderr)


def test_a_missing_data_folder_ends_the_run_with_a_checkpoint(tmp_path, shapes_root):
    shutil.copytree(shapes_root / "shapes", tmp_path / "shapes")
    config = write_config(tmp_path, tmp_path, **LONG, checkpoint=OFTEN)
    with started(config, "data.workers=1") as process:
        (tmp_path / "shapes").rename(tmp_path / "gone")
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert re.search(r"shapes/JPEGImages/\d+.jpg: cannot be read: No such file", the_line(errors))
    saved = load_checkpoint(tmp_path / "run/checkpoints/last.pt").iteration
    (tmp_path / "gone").rename(tmp_path / "shapes")
    done = run(config, "--resume", "auto", f"train.iterations={saved + 2}")
    assert f"iteration {saved}" in done.stdout


def test_two_runs_in_one_folder_refuse_each_other(tmp_path, shapes_root):
    config = write_config(tmp_path, shapes_root, **LONG)
    with started(config, "checkpoint.every=2") as process:
        for arguments in (["--resume", "auto"], ["--overwrite"], []):
            line = the_line(run(config, *arguments, code=2).stderr)
            assert f"another run (process {process.pid} on" in line
        # The lock ends with its run, however that ended, and orphaned workers do not hold it.
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        iteration = load_checkpoint(tmp_path / "run/checkpoints/last.pt").iteration
        run(config, "--resume", "auto", f"train.iterations={iteration + 1}")


def test_starting_over_an_old_run_is_refused(tmp_path, shapes_root):
    config = write_config(tmp_path, shapes_root, train={"batch_size": 4, "iterations": 2})
    run(config)
    before = (tmp_path / "run/checkpoints/last.pt").read_bytes()
    assert "--overwrite" in the_line(run(config, code=2).stderr)
    assert (tmp_path / "run/checkpoints/last.pt").read_bytes() == before
    run(config, "--overwrite", "seed=5")
    assert (tmp_path / "run/checkpoints/last.pt").read_bytes() != before
    assert len({record["iteration"] for record in records(tmp_path)}) == len(records(tmp_path))


def test_a_non_finite_step_can_be_replayed(tmp_path, shapes_root, capsys):
    diverging = {"optimizer": "sgd", "lr": 1e30, "warmup": 0, "accumulate": 2}
    config = write_config(tmp_path, shapes_root, train=diverging, log_every=5)
    line = the_line(run(config, code=1).stderr)
    iteration = int(re.search(r"iteration (\d+): the loss", line)[1])
    assert (tmp_path / "run/non_finite/batch.pt").stat().st_size < 2e6
    weights = torch.load(tmp_path / "run/non_finite/weights.pt", weights_only=True)
    assert all(value.isfinite().all() for name, value in weights.items() if "running" not in name)
    assert not (tmp_path / "run/checkpoints/last.pt").exists()
    capsys.readouterr()
    assert replay.main([str(tmp_path / "run"), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert f"iteration {iteration}, batch of 4 photos" in shown
    rows = [row for row in shown.splitlines() if row.endswith(".jpg")]
    assert len(rows) == 4
    assert all(path in line for path in (row.split()[-1] for row in rows))
    assert "nan" in shown or "inf" in shown


def test_a_run_without_faults_has_nothing_to_replay(tmp_path, shapes_root, capsys):
    shutil.copy(write_config(tmp_path, shapes_root), tmp_path / "config.yaml.copy")
    assert replay.main([str(tmp_path)]) == 2
    assert "a run writes it only if its loss is not finite" in capsys.readouterr().err


def test_memory_stays_flat_over_many_epochs(tmp_path, shapes_root):
    """Epochs of a third of the shapes, each with an evaluation and a checkpoint; the worker's memory counts as well.

    Memory goes up and down within an epoch by more than a leak would add, so the most that they had is compared; freed memory
    is handed back here, as it would hide a leak in what is kept of it.
    """
    train_py = """import sys, train
from ssd.system import device
device.keep_freed_memory = device.give_back_freed_memory
sys.exit(train.main(sys.argv[2:]))"""
    epoch = 24 // 3 // 4
    changes = {"eval": {"every": epoch, "batch_size": 8}, "checkpoint": {"every": epoch, "keep": 1}}
    config = write_config(tmp_path, shapes_root, train={"batch_size": 4, "iterations": 1000 * epoch}, **changes)
    with started(config, "data.workers=1", "data.fraction=0.33", launcher=(sys.executable, "-c", train_py)) as process:
        peaks = {}
        for epochs in (5, 15, 30):
            wait_until(lambda: process.poll() is not None or len(records(tmp_path, "eval")) >= epochs, 300)  # noqa: B023
            assert process.poll() is None
            peaks[epochs] = peaks_since_last([process.pid, *children(process.pid)])
    lasting = peaks[5].keys() & peaks[30].keys()  # without the workers of evaluations, which end with them
    assert len(lasting) == 2
    early, late = (sum(peaks[epochs][number] for number in lasting) for epochs in (15, 30))
    assert late - early < 10, peaks


def peaks_since_last(processes: list[int]) -> dict[int, float]:
    """Return each process's peak memory in megabytes since the last call."""
    peaks = {}
    for number in processes:
        folder = Path(f"/proc/{number}")
        with suppress(OSError):  # it has ended
            for kilobytes in re.findall(r"^VmHWM:\s+(\d+)", (folder / "status").read_text(), re.M):
                peaks[number] = int(kilobytes) / 1024
            (folder / "clear_refs").write_text("5")  # proc(5): resets the peak
    return peaks
