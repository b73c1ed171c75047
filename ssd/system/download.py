"""Downloading a file: resumed where it stopped, checked by its digest, and under its name only once it is whole."""

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
STALL = 30.0  # seconds without a byte, after which a connection is given up
ATTEMPTS = 5  # in a row without progress, over all addresses
PAUSE = 2.0  # seconds before another attempt, twice as long each time

NETWORK_ERRORS = (URLError, http.client.HTTPException, TimeoutError, ConnectionError)


class DownloadError(Failure):
    """A file cannot be downloaded; the message gives the address and the reason."""


class Digest(NamedTuple):
    """What a file is recognised by: the algorithm of `hashlib`, and the beginning of the digest or all of it."""

    algorithm: str
    value: str  # hexadecimal

    def fits(self, path: Path) -> bool:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, self.algorithm).hexdigest().startswith(self.value)


def fetch(
    path: Path,
    urls: Sequence[str],
    digest: Digest,
    *,
    attempts: int = ATTEMPTS,
    stall: float = STALL,
    space: float = 0.0,
) -> Path:
    """Downloads a file, unless it is there already. An interrupted download is resumed, from any of the addresses.

    Args:
        path: where the file goes; what has arrived of it is kept beside it as `NAME.part`.
        urls: its addresses, tried one after the other.
        digest: what it is recognised by.
        attempts: how many attempts in a row may bring nothing.
        stall: seconds without a byte, after which a connection is given up.
        space: free space that is needed beside the file, as a multiple of its size.

    Raises:
        DownloadError: no address gave the whole file.
        OSError: the disk cannot be written or has too little space.
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
            reason = "the connection was closed early"
        except NETWORK_ERRORS as error:
            is_whole, reason = False, _reason(error)
        if is_whole and digest.fits(part):
            os.replace(part, path)
            return path
        if is_whole:
            reason = "another file arrived and was removed"
            part.unlink()
        reasons.append(f"{url}: {reason}")
        failures = 0 if _size(part) > before else failures + 1
        if failures < attempts:
            print(f"{reasons[-1]}; trying again", file=sys.stderr)
            time.sleep(PAUSE * 2**failures if failures else 0)
    raise DownloadError(reasons[-1])


def ask(url: str, seconds: float) -> None:
    """Asks a server for the first byte of a file: whether it could be downloaded.

    Args:
        url: of the file.
        seconds: to wait for the answer, over all addresses of the server, of which a firewall may swallow what is sent to each.

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
    """Appends to `part` what the server has beyond it; whether all that the server announced has arrived."""
    start = _size(part)
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urlopen(request, timeout=stall)
    except HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # nothing is missing: the digest decides
            return True
        raise
    with response:
        if start and response.status != http.HTTPStatus.PARTIAL_CONTENT:  # the server sends all of it again
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
        raise OSError(errno.ENOSPC, f"{needed / 2**30:.1f} GiB are needed, {free / 2**30:.1f} are free", str(part))
