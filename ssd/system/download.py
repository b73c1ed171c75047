"""Download files: resume, check the digest, and give a file its name only when it is complete."""

import errno
import hashlib
import http.client
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from ssd.system.errors import Failure

CHUNK = 2**20  # bytes
STALL = 30.0  # seconds without data before a connection is dropped
ATTEMPTS = 5  # consecutive attempts without progress, over all addresses
PAUSE = 2.0  # seconds before another attempt; doubled each time

NETWORK_ERRORS = (URLError, http.client.HTTPException, TimeoutError, ConnectionError)


class DownloadError(Failure):
    """A download failed; the message gives the address and the reason."""


class Digest(NamedTuple):
    """The expected digest of a file, or its beginning."""

    algorithm: str  # name in `hashlib`
    value: str  # hexadecimal

    def fits(self, path: Path) -> bool:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, self.algorithm).hexdigest().startswith(self.value)


def fetch(
    path: Path, urls: Sequence[str], digest: Digest, *, attempts: int = ATTEMPTS, stall: float = STALL, space: float = 0.0
) -> Path:
    """Download a file, unless it exists. An interrupted download resumes, from any of the addresses.

    Args:
        path: the target; until the download is complete, its data is in `NAME.part` in the same folder.
        urls: addresses of the file, tried in turn.
        digest: the expected digest.
        attempts: limit on consecutive attempts without progress.
        stall: seconds without data before a connection is dropped.
        space: additional free space needed, as a multiple of the file size.

    Raises:
        DownloadError: no address delivered the complete file.
        OSError: the disk is not writable or has too little space.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    if path.exists():
        if digest.fits(path):
            return path
        path.unlink()
    reasons: list[str] = []
    failures = 0
    while failures < attempts:
        url = urls[len(reasons) % len(urls)]
        before = _size(part)
        try:
            is_whole = _transfer(url, part, stall, space)
            reason = "connection closed early"
        except NETWORK_ERRORS as error:
            is_whole, reason = False, _reason(error)
        if is_whole and digest.fits(part):
            os.replace(part, path)
            return path
        if is_whole:
            reason = "digest mismatch; the file was removed"
            part.unlink()
        reasons.append(f"{url}: {reason}")
        failures = 0 if _size(part) > before else failures + 1
        if failures < attempts:
            print(f"{reasons[-1]}; retrying", file=sys.stderr)
            time.sleep(PAUSE * 2**failures if failures else 0)
    raise DownloadError(reasons[-1])


def ask(url: str, seconds: float) -> None:
    """Request the first byte of a file, to find out whether it can be downloaded.

    Args:
        url: address of the file.
        seconds: time limit over all IP addresses of the server; a firewall may drop the packets to each.

    Raises:
        DownloadError: the server does not answer, or does not have the file.
    """
    answers: SimpleQueue[str | None] = SimpleQueue()

    def wait() -> None:
        try:
            with urlopen(Request(url, headers={"Range": "bytes=0-0"}), timeout=seconds):
                answers.put(None)
        except NETWORK_ERRORS as error:
            answers.put(_reason(error))

    threading.Thread(target=wait, daemon=True).start()
    try:
        reason = answers.get(timeout=seconds)
    except Empty:
        reason = f"no answer within {seconds:g} seconds"
    if reason is not None:
        raise DownloadError(f"{url}: {reason}")


def _reason(error: BaseException) -> str:
    return str(getattr(error, "reason", None) or error or type(error).__name__)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _transfer(url: str, part: Path, stall: float, space: float) -> bool:
    """Append the missing data to `part`; return whether the file has the length that the server announced."""
    start = _size(part)
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urlopen(request, timeout=stall)
    except HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # no data is missing; the digest decides
            return True
        raise
    with response:
        if start and response.status != http.HTTPStatus.PARTIAL_CONTENT:  # the server restarts from the beginning
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        if total is not None:
            _check_space(part, total - start + total * space)
        with open(part, "ab" if start else "wb") as file, tqdm(
            total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None
        ) as bar:  # fmt: skip
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            return total is None or file.tell() >= total


def _check_space(part: Path, needed: float) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed / 2**30:.1f} GiB needed, {free / 2**30:.1f} GiB free", str(part))
