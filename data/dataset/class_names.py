"""Messages about class names: unknown ones, and ones that may be the same class spelled in two ways."""

import difflib
from collections.abc import Mapping

RARE = 20  # a class with this many times fewer objects than another may be a typo of it


def unknown_class(name: str, classes: Mapping[str, int]) -> str:
    """Return the message for a class that is not listed, with the closest known name."""
    by_lower = {known.lower(): known for known in classes}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    hint = f"did you mean {by_lower[close[0]]!r}?" if close else f"known classes: {', '.join(classes)}."
    return f"unknown class {name!r}; {hint} Fix the name, list it in data.classes, or set data.other_classes: ignore"


def similar_classes(counts: Mapping[str, int]) -> list[str]:
    """Return warnings about class names that may be one class.

    Either the names differ only in case, spaces or punctuation, or a rare name looks like a typo of a common one.

    Args:
        counts: number of objects per class.
    """
    warnings, spellings = [], {}
    for name in sorted(counts, key=lambda name: -counts[name]):
        plain = "".join(filter(str.isalnum, name.casefold())) or name
        if plain in spellings:
            warnings.append(_warning(spellings[plain], name, counts, "differ only in case, spaces or punctuation"))
            continue
        common = [
            other
            for other in spellings
            if counts[name] * RARE < counts[spellings[other]] and _without_digits(other) != _without_digits(plain)
        ]
        close = difflib.get_close_matches(plain, common, n=1, cutoff=0.8)
        if close:
            warnings.append(_warning(spellings[close[0]], name, counts, "are spelled almost alike"))
        spellings[plain] = name
    return warnings


def _warning(one: str, other: str, counts: Mapping[str, int], reason: str) -> str:
    return (
        f"classes {one!r} ({counts[one]} objects) and {other!r} ({counts[other]}) {reason}; if they are one class, "
        "use one spelling in the annotations"
    )


def _without_digits(name: str) -> str:
    """Remove digits: names that differ only in numbers (van1, van2) are meant to differ."""
    return "".join(letter for letter in name if not letter.isdigit())
