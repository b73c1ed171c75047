"""The checkpoint file: `TrainState`, everything that survives a restart, written and read as tensors and plain values.

`ssd.training.checkpoints` decides which checkpoints a run keeps.
"""

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
# Keys in the file that differ from the names of `TrainState`.
KEYS = {"preprocessing": "preparation", "loss_sums": "window", "recorded_at": "window_start"}
EXPORTED = (".onnx", ".pt2")  # suffixes of exported programs


class CheckpointError(UserError):
    """A checkpoint cannot be used; the message names the file and the reason."""


@dataclass
class TrainState:
    """The state of a run between two iterations. In the file, the names in `KEYS` differ."""

    model: dict[str, Tensor]
    classes: list[str]
    preprocessing: dict[str, Any]  # fields of `ssd.preprocessing.Preprocessing`
    config: dict[str, Any]
    iteration: int = 0  # completed iterations
    num_processes: int = 0  # processes of the run; 0 in old checkpoints, which lack it
    optimizer: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    average: dict[str, Tensor] | None = None  # moving average of the weights, if the run has one
    best_map: float = -1.0
    best_loss: float = math.inf  # validation loss of the best evaluation, which breaks ties in mAP
    class_scores: dict[str, float] = field(default_factory=dict)  # minimum score of each class with the best F1 on data.val
    evaluated_at: int = -1  # iteration of the last evaluation
    not_improved: int = 0  # evaluations since the best one
    loss_sums: Tensor | None = None  # since the last train record: loss_l, loss_c and, with a teacher, loss_d
    grad_norms: Tensor | None = None  # since the last train record: sum of gradient norms, and their number
    recorded_at: int | None = None  # iteration of the last train record; None in old checkpoints, which lack it
    run_id: str = ""  # identifier of the run; empty in old checkpoints

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights for evaluation and detection: the moving average if there is one."""
        return self.model if self.average is None else self.average


def weights_alone(state: TrainState) -> TrainState:
    """Return a state for using the network, without what resuming needs.

    It has the weights in half precision, the preprocessing, the classes with their thresholds, the shape of the network, and
    the tiles of training. Vectors (biases, and scales and statistics of batch normalisation) keep their precision: they are
    small, and a variance may exceed the range of float16.
    """
    weights = {name: value.half() if value.ndim > 1 else value for name, value in state.weights.items()}
    tiles = state.config.get("data", {}).get("tiles")
    shape = shape_of(state.config["model"])
    config = {"model": shape, "data": {"tiles": tiles}}
    return TrainState(weights, state.classes, state.preprocessing, config, class_scores=state.class_scores)


def shape_of(options: dict[str, Any]) -> dict[str, Any]:
    """Return section `model` of a configuration without the entries about initial and frozen weights."""
    return {**options, "pretrained": "none", "init_from": None, "freeze": None}


def save_checkpoint(path: Path, state: TrainState) -> None:
    """Write a checkpoint atomically: at any moment `path` is complete, old or new.

    Raises:
        OSError: the disk is full or not writable; `path` is unchanged.
    """
    values = {KEYS.get(f.name, f.name): getattr(state, f.name) for f in fields(state)}
    content = {"kind": KIND, "format": FORMAT, "digest": digest(values), "state": values}

    def write(file: IO[bytes]) -> None:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # raised by PyTorch's archive writer after an OSError
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None

    write_whole(path, write)


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copy a checkpoint atomically, as a hard link if the file system supports it."""
    aside = aside_of(target)
    with naming(target):
        try:
            os.link(source, aside)
        except OSError:
            shutil.copyfile(source, aside)
        os.replace(aside, target)
        sync_folder(target.parent)


def load_checkpoint(path: Path) -> TrainState:
    """Load a checkpoint and verify its digest. Nothing in the file is executed.

    Raises:
        CheckpointError: the file is missing, damaged, or not a checkpoint of this application.
    """
    return state_in(read_tensors(path), path)


def read_tensors(path: Path) -> Any:
    """Load a file of tensors and plain values from any project. Nothing in it is executed.

    Raises:
        CheckpointError: the file is missing or damaged, or has other content.
    """
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; name a checkpoint in it, such as checkpoints/last.pt")
    if path.suffix.lower() in EXPORTED and path.exists():
        raise CheckpointError(f"{path}: is an exported program, not a checkpoint; name the checkpoint that was exported")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TorchScript; the error says the same
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint{looked_in(path)}") from None
    except pickle.UnpicklingError:
        raise CheckpointError(f"{path}: not loaded: contains more than tensors and plain values, or is damaged") from None
    except Exception as error:  # PyTorch may raise anything for other files: struct.error, IndexError, ...
        raise CheckpointError(f"{path}: is damaged or not a checkpoint ({first_line(error)})") from None


def is_own(content: Any) -> bool:
    """Return whether the content of a file was written by `save_checkpoint`."""
    return isinstance(content, dict) and content.get("kind") == KIND


def state_in(content: Any, path: Path) -> TrainState:
    """Return the state in the content of a checkpoint.

    Raises:
        CheckpointError: it is damaged, or not from this application.
    """
    if not is_own(content):
        raise CheckpointError(
            f"{path}: is not a checkpoint of this application; scripts/convert_weights.py converts those of some other projects"
        )
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: has format {content.get('format')}, but this version reads {FORMAT}; use the version that wrote it"
        )
    values = content.get("state")
    if not _is_digest(content.get("digest"), values):
        raise CheckpointError(f"{path}: is damaged: its digest does not match its content")
    try:
        names = {key: name for name, key in KEYS.items()}
        named: dict[Any, Any] = {names.get(key, key): entry for key, entry in values.items()}
        state = TrainState(**named)
        state.model = {name: value.float() if value.dtype == torch.float16 else value for name, value in state.model.items()}
    except (AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: is not a complete training state ({first_line(error)})") from None
    return state


def _is_digest(given: object, values: Any) -> bool:
    try:
        return digest(values) == given
    except (RuntimeError, TypeError, ValueError):  # for tensors that no run has: sparse, quantized or on the meta device
        return False


def digest(values: Any) -> str:
    """Return the SHA-256 of nested plain values and tensors: names, types, shapes and content."""
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
