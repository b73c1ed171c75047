"""Choose photos to label next with a trained network."""

import html
import os
import sys
from codecs import BOM_UTF8
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.dataset.disk_cache import content_digest
from data.dataset.errors import DataError
from data.dataset.similar import SIDE, find_alike, thumbnail
from ssd.config import ConfigError
from ssd.config.file import parse_config
from ssd.deploy.detection import output_folder, read_ahead
from ssd.deploy.inputs import Input, find_inputs
from ssd.deploy.results import FrameDetections, Results
from ssd.diagnostics.photo_choice import choose, uncertainty
from ssd.evaluation.failures import PICTURE
from ssd.evaluation.report import page
from ssd.inference.pictures import draw_boxes, jpeg, scaled_into
from ssd.inference.predict import Detections
from ssd.inference.predictor import Predictor
from ssd.model import SSD
from ssd.system.errors import UsageError, first_line
from ssd.system.files import write_text, write_whole
from ssd.system.images import DecodedPhoto, ImageError, decode, printable, read_bytes, read_reduced
from ssd.training.datasets import load_part
from ssd.training.run import Run
from ssd.weights.checkpoint import TrainState

LIST = ".txt"  # suffix of files that list photos
LEAST_SCORE = 0.1  # of detections that count as uncertain: below, most are background


class Labelled(NamedTuple):
    """Photos that have labels."""

    contents: np.ndarray  # [m] int64: digests of the files
    thumbnails: np.ndarray  # [m, 16, 16] uint8


class Candidates(NamedTuple):
    """Photos without labels, each once."""

    photos: list[Input]
    values: np.ndarray  # [n]: how uncertain the detections are
    features: np.ndarray  # [n, d] float32: the last map of the backbone, averaged over its cells
    thumbnails: np.ndarray  # [n, 16, 16] uint8
    num_labelled: int  # photos left out because they are labelled
    num_repeated: int  # and because they equal another one
    num_damaged: int  # or cannot be read


class Choice(NamedTuple):
    """The result of `label_next`."""

    folder: Path
    num_chosen: int
    num_objects: int  # in the pre-labels
    candidates: Candidates


def label_next(
    scorer: Predictor, labeller: Predictor, photos: Sequence[Input], labelled: Labelled, number: int, output: Path | None,
    overwrite: bool, formats: Collection[str], batch_size: int,
) -> Choice:  # fmt: skip
    """Choose photos, and write their list, a page with their pictures, and their pre-labels. Nothing is written before the end.

    Args:
        scorer: detects objects from `LEAST_SCORE` on.
        labeller: detects the objects of the pre-labels.
        photos: to choose from.
        labelled: photos to leave out, with those that look like them.
        number: how many to choose.
        output: output folder; by default runs/label_next, or runs/label_next-2 and so on.
        overwrite: write into a folder that is not empty.
        formats: of the pre-labels.
        batch_size: photos or tiles in one batch of the network.

    Raises:
        UsageError: no photo is left to label, `output` is a file, or it is not empty.
    """
    folder = output_folder(output, overwrite, Path("runs/label_next"))
    try:
        found = find_candidates(scorer, photos, labelled, batch_size)
        if not found.photos:
            raise UsageError(f"no photo is left to label; {describe(found)}")
        chosen = choose(found.values, found.features, found.thumbnails, number)
        entries, figures = [], []
        for rank, index in enumerate(tqdm(chosen, unit="photo", desc="pre-labels", disable=None, leave=False), start=1):
            photo, image = found.photos[index], read_reduced(found.photos[index].path, labeller.reduction)
            (detections,) = labeller.detect([image], batch_size)
            entries.append(FrameDetections(photo.name, None, image.width, image.height, detections))
            caption = f"{rank}. {photo.name}: {len(detections.labels)} objects, uncertainty {found.values[index]:.2f}"
            figures.append(f"<figure><img alt='' src='{_picture(image, detections, labeller.classes)}'>")
            figures.append(f"<figcaption>{html.escape(caption)}</figcaption></figure>")
        with Results(folder, formats, labeller.classes) as results:
            results.add(entries)
        title = "Photos to label next"
        note = f"{len(chosen)} of {len(found.photos):,} without labels, in the order of choice; {describe(found)}."
        text = page(title, [f"<h1>{title}</h1><p class=note>{note}</p>", "<div class=small>", *figures, "</div>"])
        write_text(folder / "label_next.html", text)
        lines = "".join(f"{found.photos[index].path}\n" for index in chosen)
        write_whole(folder / "label_next.txt", lambda file: file.write(os.fsencode(lines)))
        return Choice(folder, len(chosen), results.num_objects, found)
    finally:
        with suppress(OSError):  # it holds files
            folder.rmdir()


def describe(found: Candidates) -> str:
    """Describe the photos that were left out."""
    left_out = f"{found.num_labelled} labelled, {found.num_repeated} repeated"
    return f"left out: {left_out}, {found.num_damaged} damaged"


def _picture(photo: DecodedPhoto, detections: Detections, classes: Sequence[str]) -> str:
    small = scaled_into(photo.pixels, PICTURE, PICTURE)
    scale = np.tile([small.shape[1] / photo.width, small.shape[0] / photo.height], 2)
    return jpeg(draw_boxes(small, detections.boxes * scale, detections.labels, classes, detections.scores))


def find_candidates(predictor: Predictor, photos: Sequence[Input], labelled: Labelled, batch_size: int) -> Candidates:
    """Run the network on all photos; print errors of single ones and continue."""
    known, seen = set(labelled.contents.tolist()), set[int]()
    num_labelled, num_repeated, num_damaged = 0, 0, 0
    kept: list[Input] = []
    values: list[float] = []
    features: list[np.ndarray] = []
    thumbnails: list[np.ndarray] = []
    batch: list[DecodedPhoto] = []
    with (
        tqdm(total=len(photos), unit="photo", disable=None) as bar,
        closing(read_ahead([photo.path for photo in photos], predictor.reduction)) as read,
        pooled_features(predictor.model) as pooled,
    ):
        for number, (photo, result) in enumerate(zip(photos, read, strict=True), start=1):
            try:
                image, content = result(), content_digest(read_bytes(photo.path).data)
            except ImageError as error:
                num_damaged += 1
                tqdm.write(f"error: {error}", file=sys.stderr)
            else:
                if content in known:
                    num_labelled += 1
                elif content in seen:
                    num_repeated += 1
                else:
                    seen.add(content)
                    kept.append(photo)
                    thumbnails.append(thumbnail(image.pixels))
                    batch.append(image)
            if batch and (number == len(photos) or predictor.fills(batch, batch_size)):
                values += [uncertainty(detections.scores) for detections in predictor.detect(batch, batch_size)]
                counts = np.array([len(predictor.crops(image.width, image.height)) for image in batch])
                features.append(torch.cat(pooled).numpy()[counts.cumsum() - counts])  # of the whole photos, without tiles
                batch = []
                pooled.clear()
            bar.update(number - bar.n)
    if not kept:
        return Candidates([], np.zeros(0), np.zeros((0, 1)), no_thumbnails(), num_labelled, num_repeated, num_damaged)
    small, is_left = np.stack(thumbnails), np.ones(len(kept), bool)
    for alike in find_alike(labelled.thumbnails, small):
        is_left[alike.others] = False
    rows = np.flatnonzero(is_left)
    return Candidates(
        [kept[row] for row in rows], np.array(values)[rows], np.concatenate(features)[rows], small[rows],
        num_labelled + len(kept) - len(rows), num_repeated, num_damaged,
    )  # fmt: skip


def no_thumbnails() -> np.ndarray:
    return np.zeros((0, SIDE, SIDE), np.uint8)


@contextmanager
def pooled_features(model: SSD) -> Iterator[list[Tensor]]:
    """Yield a list that receives, for each batch of the network within the block, the last map of its backbone, averaged over
    the cells `[B, d]` float32."""
    found: list[Tensor] = []

    def collect(_module: object, _inputs: object, maps: Sequence[Tensor]) -> None:
        found.append(maps[-1].float().mean(dim=(2, 3)).cpu())

    handle = model.backbone.register_forward_hook(collect)
    try:
        yield found
    finally:
        handle.remove()


def find_labelled(state: TrainState, name: str, words: Sequence[str]) -> Labelled:
    """Return the labelled photos: those of the checkpoint's run, where they still are, and those that arguments name.

    Args:
        state: the checkpoint.
        name: of the checkpoint, for messages.
        words: photos, folders, patterns, and text files with a photo on each line.

    Raises:
        UsageError: one of them does not exist, or names no photo.
    """
    contents, thumbnails = [np.zeros(0, np.int64)], [no_thumbnails()]
    if state.config.get("data", {}).get("train"):
        try:
            run = Run.alone(parse_config(state.config, name))
            parts = load_part(run, "train"), load_part(run, "val")
            contents += [part.contents for part in parts]
            thumbnails += [part.thumbnails for part in parts]
        except (ConfigError, DataError) as error:
            reason = f"cannot be read here ({first_line(error)})"
            print(f"note: the run's own photos {reason}; name photos that have labels with --exclude", file=sys.stderr)
    for photo in find_inputs(_listed(words)).photos:
        encoded = read_bytes(photo.path)
        contents.append(np.array([content_digest(encoded.data)]))
        with suppress(ImageError):  # a damaged photo is like no other
            thumbnails.append(thumbnail(decode(encoded, photo.path).pixels)[None])
    return Labelled(np.concatenate(contents), np.concatenate(thumbnails))


def _listed(words: Sequence[str]) -> Iterator[str]:
    """Yield arguments, with lists replaced by the photos in them; those are in the current folder or in that of the list.

    Raises:
        UsageError: a list names a file that does not exist.
    """
    for word in words:
        if not word.lower().endswith(LIST) or os.path.isdir(word):
            yield word
            continue
        for number, line in enumerate(read_bytes(word).tobytes().removeprefix(BOM_UTF8).splitlines(), start=1):
            if photo := os.fsdecode(line.strip()):
                beside = os.path.join(os.path.dirname(word), photo)
                places = [place for place in (photo, beside) if os.path.exists(place)]
                if not places:
                    raise UsageError(f"{printable(word)}, line {number}: {printable(photo)}: no such file")
                yield places[0]
