import io
import os
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from ssd.model import SSD300
from ssd.weights.checkpoint import CheckpointError, copy_checkpoint, digest, load_checkpoint, save_checkpoint
from ssd.weights.formats import load_any
from ssd.weights.pretrained import load_pretrained
from tests.helpers.checkpoints import damage_empty, damage_one_byte, damage_truncate, state
from tests.helpers.paths import ROOT


def test_save_and_load_round_trip(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, state())
    loaded = load_checkpoint(path)
    assert digest(asdict(loaded)) == digest(asdict(state()))
    assert loaded.iteration == 5
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_digest_covers_names_types_shapes_and_content():
    zeros, large, other = torch.zeros(2, 3), torch.zeros(3000), torch.zeros(3000)
    other[1500] = 1  # where printing a tensor shows dots
    different: list[object] = [
        {"a": 1}, {"a": 2}, {"a": 1.0}, {"a": "1"}, {"a": None}, {"b": 1}, {"a": [1, 2]}, {"a": [2, 1]}, {"a": 1, "b": 1},
        {"a": zeros}, {"a": zeros.T}, {"a": zeros.int()}, {"a": zeros + 1}, {"a": {"b": zeros}}, {"a": [zeros, zeros]},
        {"a": large}, {"a": other}, {"a": [large]}, {"a": [other]},
    ]  # fmt: skip
    assert len({digest(values) for values in different}) == len(different)
    # Independent of the memory layout.
    numbers = torch.arange(24.0)
    image = numbers.view(1, 2, 3, 4)
    assert digest({"a": numbers[::2]}) == digest({"a": numbers[::2].clone()})
    assert digest({"a": image.to(memory_format=torch.channels_last)}) == digest({"a": image})


def test_inference_weights_prefer_the_average():
    plain = state()
    assert plain.weights is plain.model
    average = {"a.weight": torch.zeros(3, 4)}
    assert replace(plain, average=average).weights is average


def test_gpu_checkpoint_loads_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda _: "cuda:7")  # for every saved tensor
    save_checkpoint(tmp_path / "last.pt", state())
    assert load_checkpoint(tmp_path / "last.pt").model["a.weight"].device.type == "cpu"


def test_content_and_rename_are_synced_to_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(Path(os.readlink(f"/proc/self/fd/{file}"))))
    save_checkpoint(tmp_path / "last.pt", state())
    assert synced == [tmp_path / ".last.pt.aside", tmp_path]
    (tmp_path / "other").mkdir()
    copy_checkpoint(tmp_path / "last.pt", tmp_path / "other/best.pt")
    assert synced[2:] == [tmp_path / "other"]


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, state(5))

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, state(6))
    monkeypatch.undo()
    assert load_checkpoint(path).iteration == 5
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


class Malicious:
    def __reduce__(self):
        return (os.system, ("touch executed",))


def replace_state(path: Path) -> None:
    values = {**asdict(state()), "invented": 1}
    torch.save({**torch.load(path, weights_only=True), "state": values, "digest": digest(values)}, path)


DAMAGES = {
    "missing": (Path.unlink, "no such checkpoint"),
    "truncated": (damage_truncate, "damaged"),
    "empty": (damage_empty, "damaged"),
    "one byte": (damage_one_byte, "digest"),
    "text": (lambda path: path.write_text("not a checkpoint at all\n" * 20), "damaged"),
    "other project": (
        lambda path: torch.save({"state_dict": {"w": torch.zeros(3)}}, path),
        "not a checkpoint of this application",
    ),
    "newer format": (lambda path: torch.save({**torch.load(path, weights_only=True), "format": 99}, path), "format 99"),
    "other fields": (replace_state, "is not a complete training state"),
    "pickle": (lambda path: torch.save({"kind": Malicious()}, path), "not loaded: contains more than tensors"),
}


@pytest.mark.parametrize(("damage", "expected"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_rejected_with_one_line(tmp_path, monkeypatch, damage, expected):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.pt"
    save_checkpoint(path, state())
    damage(path)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert expected in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "executed").exists()


def wrong_files(whole: bytes) -> Iterator[bytes]:
    """Yield wrong contents of a checkpoint: other files, noise, and a checkpoint truncated or with a flipped bit."""
    rng = np.random.default_rng(0)
    yield (ROOT / "configs/quickstart.yaml").read_bytes()
    yield yaml.safe_dump(asdict(state())["config"]).encode()
    yield b"seed: 0\noutput_dir: runs/ssd300\ndevice: auto\n"
    yield cv2.imencode(".jpg", np.zeros((20, 20, 3), np.uint8))[1].tobytes()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("readme.txt", "no checkpoint")
    yield archive.getvalue()
    old = io.BytesIO()
    torch.save({"w": torch.ones(3)}, old, _use_new_zipfile_serialization=False)
    for start in (b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"(lp0\n", old.getvalue()[:100]):
        for length in rng.integers(0, 3000, 30):
            yield start + rng.bytes(length)
    for content in (whole, old.getvalue()):
        for length in rng.integers(0, len(content), 60):
            yield content[:length]
        for place in rng.integers(0, len(content), 150):
            yield content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]


def test_any_wrong_file_is_rejected_with_one_line(tmp_path, recwarn):
    path = tmp_path / "last.pt"
    save_checkpoint(path, state())
    whole = digest(asdict(state()))
    model = SSD300(2, width=0.05)
    refused = 0
    for content in wrong_files(path.read_bytes()):
        path.write_bytes(content)
        for read in (load_checkpoint, load_any, lambda path: load_pretrained(model, str(path), ["a"])):
            try:
                found = read(path)
                assert read is load_checkpoint or read is load_any
                loaded = found if read is load_checkpoint else found[0]
                assert digest(asdict(loaded)) == whole  # the flipped bit is never read
            except CheckpointError as error:
                refused += 1
                assert str(path) in str(error)  # noqa: PT017
                assert len(str(error).splitlines()) == 1  # noqa: PT017
    assert refused > 1500
    assert not recwarn.list


def test_a_folder_is_not_reported_as_damaged(tmp_path):
    with pytest.raises(CheckpointError, match=r"is a folder; name a checkpoint in it"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["best.onnx", "best.pt2"])
def test_an_exported_file_is_not_reported_as_damaged(tmp_path, name):
    (tmp_path / name).write_bytes(b"a program")
    for read in (load_checkpoint, load_any):
        with pytest.raises(CheckpointError, match="is an exported program, not a checkpoint; name the checkpoint"):
            read(tmp_path / name)
