"""Systems other than Linux: runs without the features that they lack, which are removed here."""

import os
import pickle
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.loading.image_cache import ImageCache
from data.loading.workers import start_method
from ssd.config import ConfigError
from ssd.system import device
from ssd.system.stop import TIME_LIMIT, Stopped
from tests.helpers.paths import ROOT
from tests.helpers.processes import start
from tests.helpers.runs import records, write_config

# Windows lacks these modules and names, cannot fork, and cannot open folders; macOS lacks some of the names.
WITHOUT = """
import multiprocessing, os, signal, sys

sys.path.insert(0, ROOT)

if __name__ == "__main__":
    for module in ("resource", "fcntl", "pwd", "grp", "termios"):
        sys.modules[module] = None
    for name in ("sched_getaffinity", "sched_setaffinity", "O_DIRECTORY", "register_at_fork", "set_blocking"):
        delattr(os, name)
    for name in ("SIGALRM", "setitimer", "ITIMER_REAL", "alarm", "pthread_kill", "SIGCHLD", "SIGHUP", "SIGUSR1"):
        delattr(signal, name)
    opened = os.open

    def open_no_folder(path, *arguments, **options):
        if not isinstance(path, int) and os.path.isdir(path):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return opened(path, *arguments, **options)

    os.open = open_no_folder
    multiprocessing.get_all_start_methods = lambda: ["spawn"]
    import psutil
    del psutil.Process.cpu_affinity
    import torch.utils.data
    torch.utils.data._utils.signal_handling._set_SIGCHLD_handler = lambda: None  # as on Windows
    import train
    sys.exit(train.main(sys.argv[1:]))
"""


def test_a_run_without_linux_only_features(tmp_path, shapes_root):
    script = tmp_path / "elsewhere.py"
    script.write_text(WITHOUT.replace("ROOT", repr(str(ROOT))))
    data, steps = {"workers": 1, "cache": "ram"}, {"iterations": 2, "max_hours": 1.0}
    config = write_config(tmp_path, shapes_root, data=data, model={"width": 0.05}, train=steps)
    process = start([sys.executable, str(script), "--config", str(config)], cwd=ROOT)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, output + errors
    assert "Traceback" not in errors
    assert records(tmp_path, "eval")[-1]["iteration"] == 2


def test_without_fork_a_cache_starts_empty_and_small():
    cache = ImageCache(np.array([[400, 300]] * 10), 300)
    cache.get(3, lambda _: np.ones((300, 400, 3), np.uint8))
    sent = pickle.dumps(cache)
    assert len(sent) < 2000
    received = pickle.loads(sent)
    assert not received.filled.any()
    assert np.array_equal(received.sizes, cache.sizes)


def test_workers_are_forked_if_possible(monkeypatch):
    assert start_method() == "fork"
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    assert start_method() == "spawn"


def test_apple_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="finds no Apple GPU"):
        device.choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    mps = torch.device("mps")
    assert device.choose_device("auto") == mps
    assert device.choose_device("mps") == mps
    assert device.choose_device("auto", 0, 2) == torch.device("cpu")
    with pytest.raises(ConfigError, match="mps would be shared by 2 processes"):
        device.choose_device("mps", 0, 2)
    assert device.choose_precision("auto", mps) == torch.float32
    with pytest.raises(ConfigError, match="bfloat16 is not supported on mps"):
        device.choose_precision("bfloat16", mps)
    # PyTorch reads it on import.
    assert os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] == "1"
    assert "import torch" not in Path(ROOT / "ssd/__init__.py").read_text()


def test_the_time_limit_uses_no_signal():
    assert Stopped(TIME_LIMIT).exit_code == 0
    assert Stopped(signal.SIGTERM).exit_code == 143
