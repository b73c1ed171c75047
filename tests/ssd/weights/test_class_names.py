import pytest

from ssd.config.schema import VOC_CLASSES
from ssd.weights.class_names import SYNONYMS, same_class
from ssd.weights.formats import coco_names


def test_every_voc_class_is_in_coco():
    coco = coco_names()
    found = {name: coco[same_class(name, coco)] for name in VOC_CLASSES}
    assert len(set(found.values())) == 20
    assert {ours: theirs for ours, theirs in found.items() if ours != theirs} == {
        "aeroplane": "airplane", "diningtable": "dining table", "motorbike": "motorcycle", "pottedplant": "potted plant",
        "sofa": "couch", "tvmonitor": "tv",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name, others, place",
    [
        ("cat", ["dog", "cat"], 1),
        ("Traffic-Light", ["traffic light"], 0),
        ("a", ["A", "a"], 1),  # letters are classes too
        ("A", ["b", "a"], 1),
        ("catfish", ["cat", "fish"], None),
        ("---", ["...", ""], None),
        ("кот", ["Кот"], 0),
    ],
)
def test_same_class(name, others, place):
    assert same_class(name, others) == place


def test_no_name_has_two_meanings():
    names = [name for group in SYNONYMS for name in group]
    assert len(names) == len(set(names))
    assert all(name.isalnum() and name == name.casefold() for name in names)
