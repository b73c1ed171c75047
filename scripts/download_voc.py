"""Fetches PASCAL VOC 2007 and 2012 into datasets/VOCdevkit: python scripts/download_voc.py

    python scripts/download_voc.py --years 2007
    python scripts/download_voc.py --from ~/VOCtrainval_06-Nov-2007.tar --from ~/VOCtest_06-Nov-2007.tar

A download that was broken off goes on where it stopped, from one mirror or another; what arrives is checked by its digest
before it is unpacked, and the photos are counted afterwards. With --from archives are taken from files instead.
"""

import argparse
import hashlib
import http.client
import os
import shutil
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torchvision.datasets.voc import DATASET_YEAR_DICT
from tqdm import tqdm

from ssd.system.errors import UsageError

CHUNK = 2**20  # bytes
STALL = 30.0  # seconds without a byte, after which a connection is given up
ATTEMPTS = 5  # in a row without progress, over all mirrors
PAUSE = 2.0  # seconds before another attempt, twice as long each time
MIRROR = "https://pjreddie.com/media/files/"
UNPACKED = 1.1  # size of what an archive holds, against its own


class Archive(NamedTuple):
    """One file of the data set."""

    file: str
    md5: str
    urls: tuple[str, ...]
    year: str
    split: str
    num_photos: int  # of the split


def archive(key: str, year: str, split: str, num_photos: int) -> Archive:
    """One of the archives that torchvision knows, with its digest."""
    entry = DATASET_YEAR_DICT[key]
    urls = (entry["url"], MIRROR + entry["filename"])
    return Archive(entry["filename"], entry["md5"], urls, year, split, num_photos)


ARCHIVES = (
    archive("2007", "2007", "trainval", 5011),
    archive("2007-test", "2007", "test", 4952),
    archive("2012", "2012", "trainval", 11540),
)


class DownloadError(Exception):
    """An archive is not to be had; the message says what to do."""


def main(arguments: list[str] | None = None, archives: Sequence[Archive] = ARCHIVES) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", default="2007,2012", metavar="Y,...", help="2007, 2012 or both, which is the default")
    parser.add_argument("--root", type=Path, default=Path("datasets"), metavar="FOLDER", help="where VOCdevkit goes (datasets)")
    parser.add_argument("--from", dest="files", type=Path, action="append", default=[], metavar="FILE", help="a local archive")
    parser.add_argument("--keep", action="store_true", help="keep the archives after unpacking")
    options = parser.parse_args(arguments)
    years = options.years.split(",")
    try:
        unknown = set(years) - {each.year for each in archives}
        if unknown:
            raise UsageError(f"--years {', '.join(sorted(unknown))}: known are 2007 and 2012")
        local = local_files(options.files, archives)
        for each in archives:
            if each.year not in years or (options.files and each.file not in local):
                continue
            if count(options.root, each) == each.num_photos:
                print(f"VOC{each.year} {each.split}: is there already, {each.num_photos:,} photos")
                continue
            path = local.get(each.file) or fetch(each, options.root)
            unpack(path, options.root)
            found = count(options.root, each)
            if found != each.num_photos:
                raise DownloadError(
                    f"VOC{each.year} {each.split}: {found:,} photos after unpacking, expected {each.num_photos:,}"
                )
            if each.file not in local and not options.keep:
                path.unlink()
            print(f"VOC{each.year} {each.split}: {found:,} photos in {options.root / 'VOCdevkit' / f'VOC{each.year}'}")
    except (DownloadError, UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        print(f"error: {error.filename or options.root}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def local_files(files: Sequence[Path], archives: Sequence[Archive]) -> dict[str, Path]:
    """Which archive each file is, by its digest.

    Raises:
        UsageError: a file is missing, or none of them.
    """
    by_digest = {each.md5: each.file for each in archives}
    found = {}
    for path in files:
        if not path.is_file():
            raise UsageError(f"--from {path}: no such file")
        name = by_digest.get(md5_of(path))
        if name is None:
            raise UsageError(f"--from {path}: is none of {', '.join(each.file for each in archives)}, or damaged")
        found[name] = path
    return found


def fetch(each: Archive, root: Path) -> Path:
    """Downloads an archive into `root`, going on with what is there of it.

    Raises:
        DownloadError: no mirror gave the whole of it.
    """
    root.mkdir(parents=True, exist_ok=True)
    whole, part = root / each.file, root / f"{each.file}.part"
    if whole.exists():
        if md5_of(whole) == each.md5:
            return whole
        whole.unlink()
    reasons: list[str] = []
    failures = 0
    while failures < ATTEMPTS:
        url = each.urls[len(reasons) % len(each.urls)]
        before = part.stat().st_size if part.exists() else 0
        try:
            is_whole = transfer(url, part)
        except (URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            is_whole, reason = False, str(getattr(error, "reason", None) or error or type(error).__name__)
        else:
            reason = "the connection broke off"
        if is_whole and md5_of(part) == each.md5:
            os.replace(part, whole)
            return whole
        if is_whole:
            reason = "what arrived is not the archive; it was thrown away"
            part.unlink()
        reasons.append(f"{url}: {reason}")
        print(f"{reasons[-1]}; trying again", file=sys.stderr)
        after = part.stat().st_size if part.exists() else 0
        failures = 0 if after > before else failures + 1
        time.sleep(PAUSE * 2**failures if failures else 0)
    raise DownloadError(f"{each.file} is not to be had ({reasons[-1]}); download it elsewhere and use --from FILE")


def transfer(url: str, part: Path) -> bool:
    """Appends to `part` what the server has beyond it; whether all that the server announced has arrived."""
    start = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urlopen(request, timeout=STALL)
    except HTTPError as error:
        if error.code == 416:  # there is nothing beyond: the digest decides
            return True
        raise
    with response:
        if start and response.status != 206:  # the server sends all of it again
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        free = shutil.disk_usage(part.parent).free
        if total is not None and (total - start) + total * UNPACKED > free:
            raise OSError(
                28, f"{(total * (1 + UNPACKED) - start) / 2**30:.1f} GiB are needed, {free / 2**30:.1f} are free", str(part)
            )
        with open(part, "ab" if start else "wb") as file, tqdm(
            total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None
        ) as bar:  # fmt: skip
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            return total is None or file.tell() >= total


def md5_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def unpack(path: Path, root: Path) -> None:
    """Unpacks an archive into `root`; what would land outside of it, or is no plain file or folder, is refused.

    Raises:
        DownloadError: the archive is damaged, or holds something else.
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
    """The photos of a split that are there, with their annotations."""
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
