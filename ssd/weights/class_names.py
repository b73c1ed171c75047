"""Which classes of two data sets are the same, though their names are written in different ways."""

from collections.abc import Sequence

# Names of one thing, letters only: what VOC calls it, what COCO calls it, what people write.
SYNONYMS = (
    ("aeroplane", "airplane", "plane"),
    ("bicycle", "bike"),
    ("diningtable", "table"),
    ("motorbike", "motorcycle"),
    ("person", "people", "pedestrian", "human"),
    ("pottedplant", "houseplant"),
    ("sofa", "couch"),
    ("tvmonitor", "tv", "television", "monitor"),
    ("cellphone", "mobilephone", "smartphone"),
    ("refrigerator", "fridge"),
)
_FIRST = {name: names[0] for names in SYNONYMS for name in names}


def same_class(name: str, others: Sequence[str]) -> int | None:
    """The place among `others` of the class that `name` means, or None.

    A name that is written alike counts first; then one that differs in case, spaces and punctuation only, or is a synonym.
    """
    if name in others:
        return others.index(name)
    keys = [_key(other) for other in others]
    key = _key(name)
    return keys.index(key) if key and key in keys else None


def _key(name: str) -> str:
    letters = "".join(character for character in name.casefold() if character.isalnum())
    return _FIRST.get(letters, letters)
