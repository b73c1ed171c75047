"""Download PASCAL VOC 2007 and 2012 into datasets/VOCdevkit: python scripts/download_voc.py

    python scripts/download_voc.py --years 2007
    python scripts/download_voc.py --from ~/VOCtrainval_06-Nov-2007.tar --from ~/VOCtest_06-Nov-2007.tar

Resumes an interrupted download, from any mirror. Checks the digest of each archive before unpacking it, and counts the photos
afterwards. With --from, uses local archives instead.
"""

import os
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ssd.system.arguments import Parser, names_of
from ssd.system.command import command
from ssd.system.download import Digest, DownloadError, fetch
from ssd.system.errors import UsageError

MIRROR = "https://pjreddie.com/media/files/"
ARCHIVES = (  # torchvision's name, year, split, photos of the split
    ("2007", "2007", "trainval", 5011),
    ("2007-test", "2007", "test", 4952),
    ("2012", "2012", "trainval", 11540),
)
UNPACKED = 1.1  # unpacked size divided by the archive's size


class Archive(NamedTuple):
    """One file of PASCAL VOC."""

    file: str
    digest: Digest
    urls: tuple[str, ...]
    year: str
    split: str
    num_photos: int  # of the split


def voc_archives() -> list[Archive]:
    """Return the archives, with torchvision's digests."""
    from torchvision.datasets.voc import DATASET_YEAR_DICT  # imports PyTorch, which takes seconds

    archives = []
    for key, year, split, num_photos in ARCHIVES:
        entry = DATASET_YEAR_DICT[key]
        urls = (entry["url"], MIRROR + entry["filename"])
        archives.append(Archive(entry["filename"], Digest("md5", entry["md5"]), urls, year, split, num_photos))
    return archives


@command(resume="the same command resumes the download")
def main(arguments: list[str] | None = None, archives: Sequence[Archive] | None = None) -> int:
    parser = Parser(__doc__)
    years = sorted({year for _, year, _, _ in ARCHIVES})
    parser.add_argument("--years", type=names_of(years), default=years, metavar="Y,...", help=f"by default {','.join(years)}")
    parser.add_argument("--root", type=Path, default=Path("datasets"), metavar="FOLDER", help="where VOCdevkit goes (datasets)")
    parser.add_argument("--from", dest="files", type=Path, action="append", default=[], metavar="FILE", help="a local archive")
    parser.add_argument("--keep", action="store_true", help="keep the archives after unpacking")
    options = parser.parse_args(arguments)
    archives = voc_archives() if archives is None else archives
    local = local_files(options.files, archives)
    for each in archives:
        if each.year not in options.years or (options.files and each.file not in local):
            continue
        if count(options.root, each) == each.num_photos:
            print(f"VOC{each.year} {each.split}: already complete, {each.num_photos:,} photos")
            continue
        path = local.get(each.file) or download(each, options.root)
        unpack(path, options.root)
        found = count(options.root, each)
        if found != each.num_photos:
            raise DownloadError(f"VOC{each.year} {each.split}: {found:,} photos after unpacking, expected {each.num_photos:,}")
        if each.file not in local and not options.keep:
            path.unlink()
        print(f"VOC{each.year} {each.split}: {found:,} photos in {options.root / 'VOCdevkit' / f'VOC{each.year}'}")
    return 0


def local_files(files: Sequence[Path], archives: Sequence[Archive]) -> dict[str, Path]:
    """Return the local files by the archive that they are, according to their digest.

    Raises:
        UsageError: a file is missing, or is not one of the archives.
    """
    found = {}
    for path in files:
        if not path.is_file():
            raise UsageError(f"--from {path}: no such file")
        name = next((each.file for each in archives if each.digest.fits(path)), None)
        if name is None:
            raise UsageError(f"--from {path}: is not one of {', '.join(each.file for each in archives)}, or is damaged")
        found[name] = path
    return found


def download(each: Archive, root: Path) -> Path:
    """Download an archive into `root`.

    Raises:
        DownloadError: no mirror provides it completely.
    """
    try:
        return fetch(root / each.file, each.urls, each.digest, space=UNPACKED)
    except DownloadError as error:
        raise DownloadError(f"{each.file} cannot be downloaded ({error}); download it elsewhere and use --from FILE") from None


def unpack(path: Path, root: Path) -> None:
    """Unpack an archive into `root`. Refuse entries outside of it, and anything but plain files and folders.

    Raises:
        DownloadError: the archive is damaged, or has such entries.
    """
    try:
        with tarfile.open(path) as archive_file:
            for member in tqdm(archive_file, unit="file", desc=f"unpacking {path.name}", disable=None):
                if not (member.isfile() or member.isdir()):
                    raise DownloadError(f"{path}: {member.name} is neither a file nor a folder")
                archive_file.extract(member, root, filter="data")
    except tarfile.TarError as error:
        raise DownloadError(f"{path}: cannot be unpacked ({error})") from None


def count(root: Path, each: Archive) -> int:
    """Return the number of a split's photos that exist with their annotations."""
    folder = root / "VOCdevkit" / f"VOC{each.year}"
    try:
        ids = (folder / "ImageSets" / "Main" / f"{each.split}.txt").read_text().split()
        photos = {entry.name for entry in os.scandir(folder / "JPEGImages")}
        annotations = {entry.name for entry in os.scandir(folder / "Annotations")}
    except OSError:
        return 0
    return sum(f"{photo_id}.jpg" in photos and f"{photo_id}.xml" in annotations for photo_id in ids)


if __name__ == "__main__":
    sys.exit(main())
