"""Faults in users' files: each row is a real file on disk that a real command reads.

A row is answered as specified if the command names the fault in one line (or fixes it and continues), raises nothing, and
leaves every file unchanged.
"""

import hashlib
import os
import shutil
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import train
from data.loading.dataset import DetectionDataset
from scripts import check_data
from ssd.config.schema import AugmentConfig
from ssd.model import SSD300
from ssd.preprocessing import IMAGENET
from ssd.weights.checkpoint import TrainState, save_checkpoint
from tests.helpers.annotations import load

pytestmark = pytest.mark.usefixtures("restored_signals")
TALLY: Counter[str] = Counter()  # printed at the end of the session by conftest.py

BOX = "<bndbox><xmin>11</xmin><ymin>21</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
OBJECT = f"<object><name>cat</name><difficult>0</difficult>{BOX}</object>"
SIZE = "<size><width>100</width><height>80</height><depth>3</depth></size>"
PIXELS = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)


class Row(NamedTuple):
    """A fault in a folder of three photos, and the expected answer."""

    name: str
    damage: Callable[[Path], object]
    fault: str = ""  # text of the error; empty: the photo is good, or is fixed
    note: str = ""  # text of the note about the fix
    objects: int = 3  # after the fix
    photos: int = 3


def annotation(text: str | bytes) -> Callable[[Path], object]:
    content = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / "Annotations/a.xml").write_bytes(content)


def boxed(*corners: object) -> Callable[[Path], object]:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=False)
    text = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return annotation(f"<annotation>{SIZE}<object><name>cat</name><bndbox>{text}</bndbox></object></annotation>")


def named(name: str) -> Callable[[Path], object]:
    return annotation(f"<annotation>{SIZE}{OBJECT.replace('cat', name)}</annotation>")


def sized(size: str) -> Callable[[Path], object]:
    return annotation(f"<annotation>{size}{OBJECT}</annotation>")


def split(content: str | bytes) -> Callable[[Path], object]:
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / "ImageSets/Main/all.txt").write_bytes(raw)


def photo(content: bytes, width: int = 100, height: int = 80, suffix: str = ".jpg") -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        (folder / "JPEGImages/a.jpg").unlink()
        (folder / f"JPEGImages/a{suffix}").write_bytes(content)
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        (folder / "Annotations/a.xml").write_text(f"<annotation>{size}{OBJECT}</annotation>")

    return damage


def encoded(suffix: str, pixels: np.ndarray = PIXELS) -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


def by_pillow(mode: str, kind: str, **options: Any) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        Image.fromarray(PIXELS).convert(mode).save(folder / "JPEGImages/a.jpg", kind, **options)

    return damage


def exif(orientation: int) -> bytes:
    header = Image.Exif()
    header[0x0112] = orientation
    return header.tobytes()


def vast(folder: Path) -> None:
    (folder / "JPEGImages/a.jpg").unlink()
    Image.new("1", (16_384, 8_200)).save(folder / "JPEGImages/a.png")


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / old).rename(folder / new)


def rename_photo(name: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        (folder / "JPEGImages/a.jpg").rename(folder / f"JPEGImages/{name}.jpg")
        (folder / "Annotations/a.xml").rename(folder / f"Annotations/{name}.xml")
        (folder / "ImageSets/Main/all.txt").write_text(f"{name}\nb\nc\n", encoding="utf-8")

    return damage


def remove(path: str) -> Callable[[Path], object]:
    return lambda folder: (folder / path).unlink()


def remove_folder(path: str) -> Callable[[Path], object]:
    return lambda folder: shutil.rmtree(folder / path)


def directory(path: str) -> Callable[[Path], object]:
    return lambda folder: ((folder / path).unlink(), (folder / path).mkdir())


def link(path: str, target: str) -> Callable[[Path], object]:
    return lambda folder: ((folder / path).unlink(), (folder / path).symlink_to(target))


ENTITIES = [f'<!ENTITY {new} "{f"&{old};" * 10}">' for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
BOMB = '<!DOCTYPE a [<!ENTITY a "ha">' + "".join(ENTITIES)
OUTSIDE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><object><name>&x;</name></object></annotation>'
JPEG, PNG = encoded(".jpg"), encoded(".png")

ROWS = [
    Row("untouched", lambda folder: None),
    # Annotations
    Row("xml broken", annotation("<annotation><object>"), "is not valid XML"),
    Row("xml empty", annotation(""), "it is empty"),
    Row("xml blank", annotation("  \n"), "is not valid XML"),
    Row("xml binary", annotation(bytes(range(256))), "is not valid XML"),
    Row("xml unknown encoding", annotation('<?xml version="1.0" encoding="klingon"?><annotation/>'), "is not valid XML"),
    Row("xml in utf-16", annotation(f"<annotation>{SIZE}{OBJECT}</annotation>".encode("utf-16"))),
    Row("xml wrong root", annotation("<annotations/>"), "expected <annotation>"),
    Row("xml html", annotation("<html><body>404</body></html>"), "expected <annotation>"),
    Row("xml entity bomb", annotation(f"{BOMB}]><annotation><a>&i;</a></annotation>"), "a.xml"),
    Row("xml harmless entity", annotation('<!DOCTYPE a [<!ENTITY x "cat">]><annotation/>'), "declares XML entities"),
    Row("xml external entity", annotation(OUTSIDE), "a.xml"),
    Row("xml missing", remove("Annotations/a.xml"), "a.xml: is missing"),
    Row("xml a directory", directory("Annotations/a.xml"), "cannot be read"),
    Row("xml a dead link", link("Annotations/a.xml", "nowhere"), "is missing"),
    Row("no objects", annotation(f"<annotation>{SIZE}</annotation>"), objects=2),
    Row("object without name", annotation(f"<annotation>{SIZE}<object/></annotation>"), "object 1: has no name"),
    Row("object of empty name", named(" "), "has no name"),
    Row("object without box", annotation(f"<annotation>{SIZE}<object><name>cat</name></object></annotation>"), "has no box"),
    Row("corner missing", boxed(1, 2, 3), "ymax is missing"),
    Row("corner empty", boxed(1, 2, 3, ""), "ymax is not a number"),
    Row("corner no number", boxed("eleven", 2, 30, 40), "xmin is not a number: 'eleven'"),
    Row("corner nan", boxed(1, 2, 30, "nan"), "ymax is not a finite number"),
    Row("corner infinite", boxed(1, 2, "inf", 40), "xmax is not a finite number"),
    Row("corner float", boxed(1.5, 2.25, 30.75, 40.5)),
    Row("corner vast", boxed(1, 2, 1e30, 40), note="1 boxes reached beyond"),
    Row("box inverted", boxed(30, 21, 11, 40), "the box is inverted"),
    Row("box without area", boxed(30, 21, 30, 40), note="1 boxes without area", objects=2),
    Row("box beyond the photo", boxed(200, 210, 300, 400), note="1 boxes without area", objects=2),
    Row("box partly beyond", boxed(50, 50, 300, 400), note="1 boxes reached beyond"),
    Row("box negative", boxed(-20, -20, 30, 40), note="1 boxes reached beyond"),
    Row("size missing", sized("")),
    Row("size zero", sized("<size><width>0</width><height>0</height></size>")),
    Row("size no number", sized("<size><width>wide</width><height>80</height></size>")),
    Row("size negative", sized("<size><width>-100</width><height>80</height></size>")),
    Row("size disagrees", sized("<size><width>500</width><height>375</height></size>"), "500 × 375 pixels, but the photo has"),
    Row("class misspelt", named("catt"), "unknown class 'catt'; did you mean 'cat'?"),
    Row("class in other case", named("Cat"), "unknown class 'Cat'; did you mean 'cat'?"),
    Row("class with spaces", named(" cat\n")),
    Row("class unknown", named("zebra"), "known classes: cat, dog"),
    Row("difficult missing", annotation(f"<annotation>{SIZE}{OBJECT.replace('<difficult>0</difficult>', '')}</annotation>")),
    Row("filename leads elsewhere", annotation(f"<annotation><filename>../../x.jpg</filename>{SIZE}{OBJECT}</annotation>")),
    # Splits
    Row("split missing", remove("ImageSets/Main/all.txt")),
    Row("split empty", split(""), "contains no photos"),
    Row("split only blanks", split("\n  \n\r\n"), "contains no photos"),
    Row("split not text", split(b"\xff\xfe\x00a\x80"), "is UTF-16 or not text"),
    Row("split with blank lines", split("\na\n\n\nb\nc\n\n")),
    Row("split with crlf", split("a\r\nb\r\nc\r\n")),
    Row("split with bom", split("\ufeffa\nb\nc\n")),
    Row("split without end of line", split("a\nb\nc")),
    Row("split with tabs and spaces", split("  a\t\nb \n\tc")),
    Row("split with duplicates", split("a\nb\na\nc\nc\n"), note="2 duplicate ids"),
    Row("split with a class column", split("a  1\nb -1\nc  0\n")),
    Row("split with suffixes", split("a.jpg\nb.jpg\nc.jpg\n")),
    Row("split names a stranger", split("a\nb\nc\nd\n"), "JPEGImages/d: no photo of that name"),
    Row("split leads out", split("../../../etc/passwd\nb\n"), "is a path"),
    Row("split leads to the root", split("/etc/passwd\nb\n"), "is a path"),
    Row("split leads out by backslash", split("..\\a\nb\n"), "is a path"),
    Row("split with a null byte", split("a\0\nb\n"), "is a path"),
    Row("name with spaces", rename_photo("my cat 1")),
    Row("name not ascii", rename_photo("kätzchen 猫")),
    # Photos
    Row("photo missing", remove("JPEGImages/a.jpg"), "no photo of that name"),
    Row("photo empty", photo(b""), "a.jpg: is empty"),
    Row("photo cut off", photo(JPEG[: len(JPEG) // 2]), "damaged or truncated"),
    Row("photo cut off by two bytes", photo(JPEG[:-2]), "damaged or truncated"),
    Row("photo ended in the middle", photo(JPEG[: len(JPEG) // 2] + JPEG[-2:]), "damaged or truncated"),
    Row("photo header only", photo(JPEG[:20]), "is not a supported image"),
    Row("photo cut off png", photo(PNG[: len(PNG) // 2], suffix=".png"), "damaged or truncated"),
    Row("photo cut off bmp", photo(encoded(".bmp")[:-3000], suffix=".bmp"), "damaged or truncated"),
    Row("photo cut off webp", photo(encoded(".webp")[:-100], suffix=".webp"), "a.webp"),
    Row("photo is text", photo(b"<html>404 not found</html>"), "is not a supported image"),
    Row("photo is zeros", photo(bytes(5000)), "is not a supported image"),
    Row("photo a directory", directory("JPEGImages/a.jpg"), "cannot be read"),
    Row("photo a dead link", link("JPEGImages/a.jpg", "nowhere"), "a.jpg"),
    Row("photo with another's suffix", photo(PNG)),
    Row("photo in capitals", rename("JPEGImages/a.jpg", "JPEGImages/a.JPG")),
    Row("photo of unknown suffix", rename("JPEGImages/a.jpg", "JPEGImages/a.heic"), "no photo of that name"),
    Row("photo as Windows saves it", rename("JPEGImages/a.jpg", "JPEGImages/a.jfif")),
    Row("photo twice", lambda folder: (folder / "JPEGImages/a.png").write_bytes(PNG), "has the same name"),
    Row("photo grey", by_pillow("L", "JPEG")),
    Row("photo with a palette", by_pillow("P", "PNG")),
    Row("photo black and white", by_pillow("1", "PNG")),
    Row("photo with alpha", by_pillow("RGBA", "PNG")),
    Row("photo cmyk", by_pillow("CMYK", "JPEG")),
    Row("photo gif", by_pillow("P", "GIF")),
    Row("photo of floats", by_pillow("F", "TIFF"), "pixels are floating-point numbers without a known range"),
    Row("photo 16 bit", photo(encoded(".png", PIXELS.astype(np.uint16) * 257), suffix=".png")),
    Row("photo 16 bit grey", photo(encoded(".png", PIXELS[..., 0].astype(np.uint16) * 257), suffix=".png")),
    Row("photo turned by exif", by_pillow("RGB", "JPEG", exif=exif(6))),
    Row("photo upside down by exif", by_pillow("RGB", "JPEG", exif=exif(3))),
    Row("photo with broken exif", by_pillow("RGB", "JPEG", exif=b"Exif\0\0" + struct.pack("<2sHL", b"II", 42, 2**31))),
    Row("photo of one pixel", photo(encoded(".png", PIXELS[:1, :1]), 1, 1, ".png"), note="1 boxes without area", objects=2),
    Row("photo of extreme aspect", photo(encoded(".png", np.tile(PIXELS[:2], (1, 30, 1))), 3000, 2, ".png"),
        note="1 boxes without area", objects=2),
    Row("photo too large", vast, "has 16384 × 8200 pixels, more than 134,217,728"),
    # Folders
    Row("folder missing", lambda folder: folder.rename(folder.with_name("other")), "no such folder"),
    Row("folder without photos", remove_folder("JPEGImages"), "no photo of that name"),
    Row("folder without annotations", remove_folder("Annotations"), "is missing"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of three photos with one object each."""
    folder = tmp_path / "mine"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for name in "abc":
        (folder / f"JPEGImages/{name}.jpg").write_bytes(JPEG)
        (folder / f"Annotations/{name}.xml").write_text(f"<annotation>{SIZE}{OBJECT}</annotation>")
    (folder / "ImageSets/Main/all.txt").write_text("a\nb\nc\n")
    return folder


def write_config(tmp_path: Path) -> Path:
    values: dict[str, Any] = {
        "output_dir": str(tmp_path / "run"),
        "device": "cpu",
        "data": {"classes": ["cat", "dog"], "root": str(tmp_path), "train": [{"path": "mine"}], "val": [{"path": "mine"}]},
        "model": {"pretrained": "none", "width": 0.1},
        "train": {"batch_size": 2, "iterations": 1},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def contents(folder: Path) -> dict[str, str]:
    """Return a fingerprint of every file below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def answer(command: Callable[[list[str]], int], arguments: list[str], kept: Path) -> int:
    """Run a command. Count tracebacks, and changes to the files in `kept`."""
    before = contents(kept)
    TALLY["rows tried"] += 1
    for entry in ("rows answered as specified", "tracebacks", "data or checkpoints lost"):
        TALLY[entry] += 0
    try:
        code = command(arguments)
    except BaseException:
        TALLY["tracebacks"] += 1
        raise
    after = contents(kept)
    if any(after.get(path) != fingerprint for path, fingerprint in before.items()):
        TALLY["data or checkpoints lost"] += 1
        pytest.fail("a file was changed or lost")
    return code


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_bad_input_data(row: Row, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row.damage(folder)
    code = answer(check_data.main, [str(write_config(tmp_path))], tmp_path)
    output = capsys.readouterr()
    if row.fault:
        assert code == 2
        assert any(row.fault in line for line in output.err.splitlines()), output.err
        assert all(line.startswith("error: ") for line in output.err.splitlines()[:-1])
    else:
        assert code == 0, output.err
        assert row.note in output.out
        assert row.note or "boxes" not in output.out.split("data.train: 3 photos")[0]
        photos = load(tmp_path / "mine", classes=["cat", "dog"]).photos
        assert (len(photos), len(photos.labels)) == (row.photos, row.objects)
        # Training can use whatever passes this check.
        for switches in (None, AugmentConfig()):
            samples = DetectionDataset(photos, 300, IMAGENET.fill, augment=switches)
            batch = samples.__getitems__([(0, i) for i in range(len(photos))])
            assert batch.images.shape == (row.photos, 300, 300, 3)
            assert batch.targets.boxes.isfinite().all()
    TALLY["rows answered as specified"] += 1


def test_all_bad_input_is_listed_before_the_first_step(folder, tmp_path, capsys):
    named("zebra")(folder)
    (folder / "JPEGImages/b.jpg").write_bytes(b"")
    (folder / "Annotations/c.xml").write_text("<annotation>")
    assert train.main(["--config", str(write_config(tmp_path))]) == 2
    lines = capsys.readouterr().err.splitlines()
    for expected in ("unknown class 'zebra'", "b.jpg: is empty", "c.xml: is not valid XML"):
        assert sum(expected in line for line in lines) == 1  # although data.train and data.val both name it
    assert not (tmp_path / "run/checkpoints/last.pt").exists()


class Malicious:
    """A pickle that would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def good_state(classes: tuple[str, ...] = ("cat", "dog"), width: float = 0.1, **changes: Any) -> TrainState:
    model = SSD300(len(classes) + 1, width=width)
    options = {"model": {"dboxes": "voc", "width": width, "batch_norm": "none"}}
    values = {
        "model": model.state_dict(), "classes": list(classes), "preprocessing": IMAGENET.to_plain(), "config": options,
        "run_id": "one", "optimizer": {"state": {}, "param_groups": []},
    }  # fmt: skip
    return TrainState(**{**values, **changes})


def saved(state: TrainState) -> Callable[[Path], object]:
    return lambda path: save_checkpoint(path, state)


def edited(edit: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], object]:
    return lambda path: (save_checkpoint(path, good_state()), torch.save(edit(torch.load(path, weights_only=True)), path))


def damaged(damage: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: (save_checkpoint(path, good_state()), path.write_bytes(damage(path.read_bytes())))


CHECKPOINTS = {
    "missing": (lambda path: None, "no such checkpoint"),
    "empty": (lambda path: path.write_bytes(b""), "damaged or not a checkpoint"),
    "a directory": (lambda path: path.mkdir(), "contains no checkpoint; name a checkpoint"),
    "text": (lambda path: path.write_text("weights " * 100), "damaged"),
    "cut off": (damaged(lambda content: content[: len(content) // 2]), "damaged"),
    "cut off by a byte": (damaged(lambda content: content[:-1]), "damaged"),
    "one bit flipped": (damaged(lambda content: content[:50_000] + bytes([content[50_000] ^ 1]) + content[50_001:]), "damaged"),
    "zeros": (lambda path: path.write_bytes(bytes(100_000)), "damaged"),
    "a list": (lambda path: torch.save([1, 2], path), "not a checkpoint of this application"),
    "of another project": (lambda path: torch.save({"state_dict": {"w": torch.ones(2)}}, path), "not a checkpoint of this app"),
    "of a newer format": (edited(lambda content: {**content, "format": 99}), "has format 99"),
    "without a format": (edited(lambda content: {"kind": content["kind"]}), "has format None"),
    "without a state": (edited(lambda content: {**content, "state": None}), "damaged"),
    "of other classes": (saved(good_state(("cat", "cow"))), "checkpoint has the classes ['cat', 'cow']"),
    "of more classes": (saved(good_state(("cat", "dog", "cow"))), "has the classes"),
    "of classes in another order": (saved(good_state(("dog", "cat"))), "checkpoint has the classes ['dog', 'cat']"),
    "of another width": (saved(good_state(width=0.2)), "has another model"),
    "malicious": (lambda path: torch.save({"kind": Malicious(path.with_name("executed"))}, path), "not loaded: contains"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("command", [["--resume"], ["--eval-only", "--resume"]], ids=["resumed", "evaluated"])
def test_bad_input_checkpoint(name, command, folder, tmp_path, capsys):
    write, fault = CHECKPOINTS[name]
    path = tmp_path / "given.pt"
    write(path)
    earlier = tmp_path / "run/checkpoints"
    earlier.mkdir(parents=True)
    save_checkpoint(earlier / "last.pt", good_state())
    (tmp_path / "run/run_id").write_text("one")
    arguments = ["--config", str(write_config(tmp_path)), *command, str(path)]
    code = answer(train.main, arguments, tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert line.startswith("error: ")
    assert fault in line
    assert not (tmp_path / "executed").exists()
    TALLY["rows answered as specified"] += 1


CONFIGS = {
    "missing": (None, "cannot be read"),
    "empty": (b"", "expected a mapping"),
    "a list": (b"- 1\n- 2\n", "expected a mapping"),
    "binary": (bytes(range(256)), "is not a UTF-8 text file"),
    "broken": (b"data: [unclosed", "is not valid YAML"),
    "with a tab": (b"data:\n\tclasses: voc\n", "is not valid YAML"),
    "executing": (b"!!python/object/apply:os.mkdir ['executed']", "is not valid YAML"),
    "with a key twice": (b"seed: 1\nseed: 2\n", "duplicate key"),
    "without data": (b"seed: 1\n", "data: is missing"),
    "recursive": (b"data: &x [*x]\n", "an alias refers to a node that contains it"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_bad_input_config(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content, fault = CONFIGS[name]
    if content is not None:
        Path("config.yaml").write_bytes(content)
    code = answer(train.main, ["--config", "config.yaml"], tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert any(fault in line for line in lines), lines
    assert all(line.startswith("error: config.yaml") for line in lines)
    assert not Path("executed").exists()
    TALLY["rows answered as specified"] += 1
