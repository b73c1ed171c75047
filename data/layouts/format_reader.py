"""The interface of a dataset format. A new format is a class like this in a file here, and an entry in `find.FORMATS`."""

from collections.abc import Mapping
from typing import ClassVar, Protocol

from data.dataset.entry import PhotoEntry
from data.dataset.parallel_reader import ProgressCallback, no_progress
from data.layouts.tree import FileTree


class FormatReader(Protocol):
    """Reads folders of one format."""

    suffixes: ClassVar[tuple[str, ...]]  # of its files, in lower case
    needs: ClassVar[str]  # what a folder must contain, in words
    convention: ClassVar[str]  # how it writes boxes: a key of `data.dataset.conventions.CONVENTIONS`
    is_relative: ClassVar[bool]  # whether boxes are relative to the photo, rather than in pixels

    tree: FileTree

    def __init__(self, tree: FileTree) -> None: ...

    def num_annotated(self) -> float:
        """Return roughly how many photos have boxes in this format; the format with the most is chosen.

        Less than one means that only folder names, or similar files that cannot be read, suggest the format.
        """
        ...

    def splits(self) -> list[str]:
        """Return the names of the splits; none if the folder is not split."""
        ...

    def class_counts(self, workers: int = 0, progress: ProgressCallback = no_progress) -> Mapping[str, int]:
        """Return the number of objects per class name. Files that cannot be read are skipped.

        Args:
            workers: processes that share the work, if there is enough.
            progress: receives the number of files done and in all.
        """
        ...

    def entries(self, split: str | None, labels: Mapping[str, int], ignore_others: bool, notes: list[str]) -> list[PhotoEntry]:
        """Return the photos of a split, or of the whole folder.

        Args:
            split: one of `splits()`; None for all.
            labels: label of each class name.
            ignore_others: leave out objects of other classes instead of refusing them.
            notes: receives notes about what was fixed or left out.

        Raises:
            DataError: a file that lists the photos cannot be used.
        """
        ...
