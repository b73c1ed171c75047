"""Compiled networks: the same detections, and few batch sizes."""

import pytest
import torch
import torch._inductor.config

from scripts import detect
from ssd.config import ConfigError
from ssd.inference import compiled
from ssd.inference.compiled import Compiled
from ssd.inference.predictor import Predictor, for_inference
from ssd.model import SSD300
from ssd.system.command import explain
from ssd.system.machine import has_cpp_compiler
from tests.helpers.detections import assert_alike

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def paths(shapes_root):
    return sorted((shapes_root / "shapes/JPEGImages").iterdir())[:5]


@pytest.fixture
def compiled_sizes(monkeypatch):
    """Replace torch.compile by the network itself, and return its batch sizes."""
    sizes: list[int] = []

    def compile(network, **_):
        def run(images):
            assert torch._inductor.config.freezing  # or the weights are inputs, and nothing is laid out or fused for them
            assert images.is_contiguous(memory_format=torch.channels_last)
            sizes.append(len(images))
            return network(images)

        return run

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(compiled, "require_cpp_compiler", lambda *_: None)
    return sizes


@pytest.mark.slow
@pytest.mark.skipif(not has_cpp_compiler(), reason="no C++ compiler here")
def test_compiled_and_plain_network_agree(checkpoint, paths):
    plain, fused = (Predictor.from_checkpoint(checkpoint, "cpu", "float32", 0.35, compile=word) for word in (False, True))
    assert_alike(fused(paths, batch_size=3), plain(paths))


def test_few_sizes_are_compiled(checkpoint, paths, compiled_sizes):
    plain, fused = (Predictor.from_checkpoint(checkpoint, "cpu", "float32", 0.35, compile=word) for word in (False, True))
    for photos in (paths, paths[:1], paths[:1]):
        assert_alike(fused(photos, batch_size=3), plain(photos))
    # Three photos as four, and the other two with them; one alone with them, and by itself once that has come twice.
    assert compiled_sizes == [4, 4, 4, 1]
    assert not torch._inductor.config.freezing


def test_batch_sizes_that_need_no_padding(compiled_sizes):
    network = Compiled(for_inference(SSD300(2, width=0.05), torch.float32), CPU)
    with torch.no_grad():
        for count in (7, 7, 3, 3, 3, 9, 16):  # tiles of a camera's frames, and of photos
            loc, conf, dbox_list = network(torch.zeros(count, 3, 300, 300))
            assert (len(loc), len(conf), dbox_list.shape) == (count, count, (8732, 4))
    assert compiled_sizes == [8, 8, 8, 4, 4, 16, 16]


def test_detect_compiles_on_request(checkpoint, paths, compiled_sizes, tmp_path):
    for words in ([], ["--compile"]):
        output = str(tmp_path / str(len(words)))
        arguments = [str(checkpoint), str(paths[0]), "--device", "cpu", "--no-pictures", "--output", output]
        assert detect.main([*arguments, *words]) == 0
        assert compiled_sizes == [1] * len(words)


def test_a_compiler_is_needed(checkpoint, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="compile: needs a C\\+\\+ compiler; install one, or set CXX"):
        Predictor.from_checkpoint(checkpoint, "cpu", compile=True)


def test_a_failed_compilation_is_reported_in_one_line(monkeypatch, tmp_path):
    """A compiler that is installed but fails, such as one without headers."""
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with torch.no_grad(), torch._inductor.config.patch({"cpp.cxx": (str(broken),)}), pytest.raises(RuntimeError) as caught:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(4))
    answer = explain(caught.value)
    assert answer is not None
    (line,), code = answer
    assert line.startswith("error: torch.compile failed (")
    assert line.endswith("); turn it off")
    assert code == 1
