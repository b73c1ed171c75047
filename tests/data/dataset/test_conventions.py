"""Boxes in a convention other than their format's, and boxes that only look like it."""

import numpy as np
import pytest

from data.dataset.conventions import CONVENTIONS, convention_fault
from data.dataset.errors import DataError
from data.layouts.find import FORMATS
from data.layouts.voc_annotation import parse_annotation
from scripts import check_data
from tests.helpers import voc
from tests.helpers.annotations import load
from tests.helpers.exports import NAMES, SHOTS, coco, coco_file, dump, photos, write, xmls

WORDS = list(CONVENTIONS)
CORNERS, LEFT_TOP, CENTRE, Y_FIRST = WORDS


def fault_in(written: np.ndarray, sizes: np.ndarray, layout: str) -> str:
    return convention_fault(written, sizes, FORMATS[layout].convention, FORMATS[layout].is_relative, "here")


def drawn(count: int = 300, largest: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges of random boxes, and the random sizes of their photos."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(200, 2000, (count, 2)).astype(np.float32)
    sides = rng.uniform(0.02, largest, (count, 2)) * sizes
    starts = rng.uniform(0, 1, (count, 2)) * (sizes - sides)
    return np.concatenate([starts, starts + sides], axis=1).astype(np.float32), sizes


def read(edges: np.ndarray, sizes: np.ndarray, layout: str, written_as: str) -> np.ndarray:
    """Return the edges that a format's reader gets from boxes written in another convention."""
    unit = np.tile(sizes, 2) if layout == "yolo" else 1
    numbers = edges / unit @ np.linalg.inv(CONVENTIONS[written_as]).T
    return numbers @ CONVENTIONS[FORMATS[layout].convention].T * unit


@pytest.mark.parametrize("largest", [0.1, 0.4, 0.8])
@pytest.mark.parametrize("written_as", WORDS)
@pytest.mark.parametrize("layout", ["coco", "yolo"])
def test_the_message_names_the_convention_that_fits(layout, written_as, largest):
    edges, sizes = drawn(largest=largest)
    fault = fault_in(read(edges, sizes, layout, written_as), sizes, layout)
    if written_as == FORMATS[layout].convention:
        assert fault == ""
    else:
        head, _, named = fault.partition("; as ")
        assert head.endswith(f"boxes reach beyond their photo (here, ...), read as {FORMATS[layout].convention}")
        either = f"{CORNERS} or {Y_FIRST}"  # the same when relative to the photo
        fitting = either if layout == "yolo" and written_as != LEFT_TOP else written_as
        assert named.startswith(f"{fitting} they would fit: convert")


def test_boxes_for_photos_of_another_size_are_reported():
    edges, sizes = drawn()
    assert "if they were drawn on photos of another size" in fault_in(2 * edges, sizes, "voc")


@pytest.mark.parametrize("layout", ["voc", "coco", "yolo"])
def test_boxes_may_extend_beyond_the_photo(layout):
    """A tenth of the boxes extend beyond the right edge by half their width."""
    edges, sizes = drawn()
    edges[::10, 2] = sizes[::10, 0] + (sizes[::10, 0] - edges[::10, 0])
    assert fault_in(edges, sizes, layout) == ""
    assert fault_in(edges[:2] + 5000, sizes[:2], layout) == ""  # two mistakes


HONEST = {  # photo, edges of the objects
    "three over the lower edge of landscapes, all on the left": ((640, 480), [(20 * i, 300, 20 * i + 60, 470) for i in range(9)]
                                                                 + [(30 * i, 350, 30 * i + 50, 500) for i in range(3)]),
    "all in the lower right corner, some cut off": ((640, 480), [(500, 400, 560, 470)] * 9 + [(580, 420, 650, 495)] * 4),
    "all in the upper left corner, some cut off": ((640, 480), [(40, 30, 90, 70)] * 9 + [(-12, -10, 40, 60)] * 4),
    "a few large ones, cut off by every edge": ((300, 300), [(20, 20, 310, 310), (-9, 40, 280, 308), (30, -9, 310, 290)]),
    "two pixels over the edges of small photos": ((64, 64), [(-2, -2, 66, 66), (-2, 10, 40, 66), (10, 20, 66, 66)]),
}  # fmt: skip


@pytest.mark.parametrize("layout", ["voc", "coco", "yolo"])
@pytest.mark.parametrize("name", HONEST)
def test_a_few_boxes_that_fit_another_convention_by_chance_are_accepted(name, layout):
    size, boxes = HONEST[name]
    assert fault_in(np.array(boxes, np.float32), np.tile(np.float32(size), (len(boxes), 1)), layout) == ""


@pytest.mark.parametrize("written_as", [CORNERS, LEFT_TOP, CENTRE])
def test_relative_numbers_are_reported_in_any_convention(written_as):
    edges, sizes = drawn()
    numbers = read(edges / np.tile(sizes, 2), sizes, "coco", written_as)
    assert "as if relative to their photo" in fault_in(numbers, sizes, "coco")


def test_every_command_refuses_corners_in_a_coco_file(tmp_path, capsys, proposed):
    content = coco()
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for item in content["annotations"]:  # at the lower right
        (x, y, *_), (x2, y2) = item["bbox"], sizes[item["image_id"]]
        item["bbox"] = [x2 - x - item["bbox"][2], y2 - y - item["bbox"][3], x2 - x, y2 - y]
    coco_file(tmp_path / "mine", content)
    assert f"they would fit: convert them to {LEFT_TOP}" in proposed(tmp_path / "mine", code=2)
    sources = "\n".join(f"  {part}: [{{path: mine, split: {part}, val_fraction: 0.5}}]" for part in ("train", "val"))
    config = write(tmp_path / "b.yaml", f"data:\n  root: {tmp_path}\n  classes: [{', '.join(NAMES)}]\n{sources}\n")
    assert check_data.main([str(config)]) == 2
    assert f"; as {CORNERS}" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_huge_numbers_are_clipped_without_numpy_warnings(tmp_path):
    content = coco()
    for item, bbox in zip(content["annotations"], ([1e300, 2, 1e300, 4], [1, 2, 1e38, 4], [-1e39, 2, 1e39, 4]), strict=False):
        item["bbox"] = bbox
    coco_file(tmp_path / "mine", content)
    notes = load(tmp_path / "mine").notes
    assert [note.partition(":")[0] for note in notes if " boxes " in note] == [
        "1 boxes reached beyond their photo and were clipped to it",
        "2 boxes without area were left out",
    ]


def test_tiny_boxes_are_dropped_with_a_note(tmp_path):
    photos(tmp_path / "mine/images", SHOTS[1:])
    content = coco(SHOTS[1:])
    for item in content["annotations"][::3]:
        item["bbox"][2] = 0.3
    dump(tmp_path / "mine/a.json", content)
    loaded = load(tmp_path / "mine")
    (note,) = loaded.notes
    tiny = len(content["annotations"][::3])
    assert note.startswith(f"{tiny} boxes are narrower or lower than half a pixel and were left out: ")
    assert len(loaded.photos.labels) == len(content["annotations"]) - tiny
    for item in content["annotations"]:
        item["bbox"][3] = 0.01
    dump(tmp_path / "mine/a.json", content)
    with pytest.raises(DataError, match=r"mine: none of 16 boxes can be used \(.*\): 16 boxes are narrower or lower than half"):
        load(tmp_path / "mine")


def test_a_voc_box_with_width_and_height_gets_a_hint(tmp_path):
    message = r"the box is inverted: \(50, 40\) to \(20, 30\); swap its corners, or, if the last two are width and height"
    with pytest.raises(DataError, match=message):
        parse_annotation(write(tmp_path / "a.xml", voc.xml(voc.item(box=(50, 40, 20, 30)))), {"cat": 0, "dog": 1})


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_boxes_relative_to_the_photo_are_refused(tmp_path, layout):
    """As pixels, all numbers are smaller than 1."""
    if layout == "voc":
        photos(tmp_path / "mine/images")
        xmls(tmp_path / "mine/annots", number=lambda value: value / 100)
    else:
        content = coco()
        for item in content["annotations"]:
            item["bbox"] = [value / 100 for value in item["bbox"]]
        coco_file(tmp_path / "mine", content)
    with pytest.raises(DataError, match=r"mine: all \d+ boxes lie within 0\.\.1, .*photo-0\d\..*, but pixels are expected"):
        load(tmp_path / "mine")
