"""Checkpoints: all that survives a restart, in one file of tensors and plain values."""

import hashlib
import math
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ssd.system.errors import UserError, first_line
from ssd.system.files import aside_of, looked_in, naming, sync_folder, write_whole

FORMAT = 2
KIND = "ssd300-train-state"
KEYS = {"preprocessing": "preparation"}  # keys in the file that differ from the names of `TrainState`
EXPORTED = (".onnx", ".pt2")  # ends of the names of programs that scripts/export.py writes


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message names the file and the reason."""


@dataclass
class TrainState:
    """A run between two iterations."""

    model: dict[str, Tensor]
    classes: list[str]
    preprocessing: dict[str, Any]  # of images: see `ssd.preprocessing`
    config: dict[str, Any]
    iteration: int = 0  # iterations done
    num_processes: int = 0  # that shared the last ones; 0: of a time when that was not kept
    optimizer: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    average: dict[str, Tensor] | None = None  # moving average of the weights, if the run keeps one
    best_map: float = -1.0
    best_loss: float = math.inf  # its validation loss, which decides between equal figures
    evaluated_at: int = -1  # iteration of the last evaluation
    not_improved: int = 0  # evaluations since the best one
    window: Tensor | None = None  # sums since the last train record
    grad_norms: Tensor | None = None  # likewise: the sum of the gradients' norms, and how many they are
    window_start: int | None = None  # iterations done at the last train record; None in checkpoints of before it was kept
    run_id: str = ""  # of the run that wrote it; empty in those of before runs had one

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights to use the model with: the average where there is one."""
        return self.model if self.average is None else self.average


def weights_alone(state: TrainState) -> TrainState:
    """What using the network takes, and nothing to resume with: its weights in half precision, what they want of images, its
    classes, its shape, and the tiles that it was trained on.

    Vectors (biases, scales and statistics of batch normalisation) stay as they are: they take little, and a variance may be
    larger or smaller than float16 holds.
    """
    weights = {name: value.half() if value.ndim > 1 else value for name, value in state.weights.items()}
    tiles = state.config.get("data", {}).get("tiles")
    shape = shape_of(state.config["model"])
    return TrainState(weights, state.classes, state.preprocessing, {"model": shape, "data": {"tiles": tiles}})


def shape_of(options: dict[str, Any]) -> dict[str, Any]:
    """What section `model` of a configuration says of the network, and nothing of where its weights came from."""
    return {**options, "pretrained": "none", "init_from": None, "freeze": None}


def save_checkpoint(path: Path, state: TrainState) -> None:
    """Writes a checkpoint aside, makes it safe on disk, and renames it: at any moment `path` is whole, old or new.

    Raises:
        OSError: the disk is full or cannot be written; `path` is as it was.
    """
    values = {KEYS.get(f.name, f.name): getattr(state, f.name) for f in fields(state)}
    content = {"kind": KIND, "format": FORMAT, "digest": digest(values), "state": values}

    def write(file: IO[bytes]) -> None:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # of PyTorch's archive writer, when the file has failed it
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None

    write_whole(path, write)


def copy_checkpoint(source: Path, target: Path) -> None:
    """Gives a checkpoint a second name, by a link where the disk can, as atomically as it was written."""
    aside = aside_of(target)
    with naming(target):
        try:
            os.link(source, aside)
        except OSError:
            shutil.copyfile(source, aside)
        os.replace(aside, target)
        sync_folder(target.parent)


def load_checkpoint(path: Path) -> TrainState:
    """Reads a checkpoint and verifies its digest. Nothing in the file is executed.

    Raises:
        CheckpointError: it is missing, damaged, or not a checkpoint of this application.
    """
    return state_in(read_tensors(path), path)


def read_tensors(path: Path) -> Any:
    """What a file of tensors and plain values holds, whoever wrote it. Nothing in it is executed.

    Raises:
        CheckpointError: it is missing or damaged, or holds something else.
    """
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; name a checkpoint in it, such as checkpoints/last.pt")
    if path.suffix.lower() in EXPORTED and path.exists():
        raise CheckpointError(f"{path}: is an exported file, not a checkpoint; name the checkpoint that it was made from")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript; the error that follows says the same
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint{looked_in(path)}") from None
    except pickle.UnpicklingError:
        raise CheckpointError(f"{path}: holds more than tensors and plain values, or is damaged; it was not loaded") from None
    except Exception as error:  # other files make PyTorch's reader raise anything: struct.error, IndexError, ...
        raise CheckpointError(f"{path}: is damaged or no checkpoint ({first_line(error)})") from None


def is_own(content: Any) -> bool:
    """Whether what a file holds was written by `save_checkpoint`."""
    return isinstance(content, dict) and content.get("kind") == KIND


def state_in(content: Any, path: Path) -> TrainState:
    """The state in what a checkpoint holds.

    Raises:
        CheckpointError: it is damaged, or not of this application.
    """
    if not is_own(content):
        raise CheckpointError(
            f"{path}: is not a checkpoint of this application; scripts/convert_weights.py reads those of some others"
        )
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: has format {content.get('format')}, this version reads {FORMAT}; use the version it is of"
        )
    values = content.get("state")
    if not _is_digest(content.get("digest"), values):
        raise CheckpointError(f"{path}: is damaged: its digest does not fit its content")
    try:
        named: dict[str, Any] = {
            "preprocessing" if key == KEYS["preprocessing"] else key: entry for key, entry in values.items()
        }
        state = TrainState(**named)
        state.model = {name: value.float() if value.dtype == torch.float16 else value for name, value in state.model.items()}
    except (AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: does not hold what a run needs ({first_line(error)})") from None
    return state


def _is_digest(given: object, values: Any) -> bool:
    try:
        return digest(values) == given
    except (RuntimeError, TypeError, ValueError):  # a tensor that no run has: sparse, quantized, of a meta device
        return False


def digest(values: Any) -> str:
    """SHA-256 of nested plain values and tensors: names, types, shapes and content."""
    sha = hashlib.sha256()
    for name, value in _leaves(values, ""):
        if isinstance(value, Tensor):
            sha.update(f"{name}:{value.dtype}:{list(value.shape)}".encode())
            sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            sha.update(f"{name}:{value!r}".encode())
    return sha.hexdigest()


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _leaves(entry, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for i, entry in enumerate(value):
            yield from _leaves(entry, f"{name}/{i}")
    else:
        yield name, value
