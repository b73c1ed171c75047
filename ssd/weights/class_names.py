"""Match classes of two data sets whose names are written differently."""

from collections.abc import Sequence

# Synonyms, letters only: the name in VOC, the name in COCO, other names.
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
    """Return the index in `others` of the class with this name, or None.

    An identical name comes first, then one that differs only in case, spaces and punctuation, or a synonym.
    """
    if name in others:
        return others.index(name)
    keys = [_key(other) for other in others]
    key = _key(name)
    return keys.index(key) if key and key in keys else None


def _key(name: str) -> str:
    letters = "".join(character for character in name.casefold() if character.isalnum())
    return _FIRST.get(letters, letters)
