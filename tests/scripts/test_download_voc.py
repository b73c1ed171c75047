"""Downloads from a local server that disconnects, stalls and sends wrong data."""

import hashlib
import io
import tarfile
import threading
import time
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scripts import download_voc
from scripts.download_voc import Archive, download, unpack, voc_archives
from ssd.system import download as downloading
from ssd.system.download import Digest

NUM_PHOTOS = 3


def tar(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, content in entries.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def voc(num_photos: int = NUM_PHOTOS) -> bytes:
    base = "VOCdevkit/VOC2007"
    entries = {f"{base}/JPEGImages/{i}.jpg": bytes(5000) for i in range(num_photos)}
    entries |= {f"{base}/Annotations/{i}.xml": b"<annotation/>" for i in range(num_photos)}
    entries[f"{base}/ImageSets/Main/trainval.txt"] = "\n".join(map(str, range(num_photos))).encode()
    return tar(entries)


CONTENT = voc()


@pytest.fixture
def server(monkeypatch):
    """A server with one entry of `behaviours` per request; the last one repeats."""

    class Handler(BaseHTTPRequestHandler):
        behaviours = ("good",)
        requests: list[str | None] = []  # noqa: RUF012

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            self.requests.append(wanted)
            how = self.behaviours[min(len(self.requests), len(self.behaviours)) - 1]
            if how == "missing":
                return self.send_error(404)
            content = b"x" * 7000 if how == "other file" else CONTENT
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and how != "no ranges" else 0
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206 if start else 200)
            if how != "no length":
                self.send_header("Content-Length", str(len(content) - start + (999 if how == "too long" else 0)))
            self.end_headers()
            body = content[start:]
            self.wfile.write(body[: len(body) // 2] if how in ("breaks off", "stalls") else body)
            self.wfile.flush()
            if how == "stalls":
                time.sleep(1.5)
            self.close_connection = True
            return None

    Handler.requests = []
    monkeypatch.setattr(downloading, "PAUSE", 0.01)
    monkeypatch.setattr(download_voc, "fetch", partial(downloading.fetch, stall=0.5))
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    threading.Thread(target=running.serve_forever, daemon=True).start()
    running.handler = Handler
    yield running
    running.shutdown()
    running.server_close()


def archive(server, content: bytes = CONTENT, num_photos: int = NUM_PHOTOS) -> Archive:
    url = f"http://127.0.0.1:{server.server_address[1]}/voc.tar"
    digest = Digest("md5", hashlib.md5(content).hexdigest())
    return Archive("voc.tar", digest, (url, url + "?mirror"), "2007", "trainval", num_photos)


@pytest.mark.parametrize(
    "behaviours, num_requests",
    [
        (("good",), 1), (("breaks off", "breaks off", "good"), 3), (("stalls", "good"), 2), (("breaks off", "no ranges"), 2),
        (("no length",), 1), (("missing", "good"), 2), (("other file", "good"), 2), (("too long", "good"), 2),
    ],
)  # fmt: skip
def test_the_archive_arrives_despite_server_faults(server, tmp_path, behaviours, num_requests):
    server.handler.behaviours = behaviours
    path = download(archive(server), tmp_path)
    assert path.read_bytes() == CONTENT
    assert len(server.handler.requests) == num_requests
    assert [each.name for each in tmp_path.iterdir()] == ["voc.tar"]


def test_an_interrupted_download_resumes(server, tmp_path):
    (tmp_path / "voc.tar.part").write_bytes(CONTENT[:9000])
    download(archive(server), tmp_path)
    assert server.handler.requests == ["bytes=9000-"]


@pytest.mark.parametrize("how", ["missing", "other file"])
def test_a_failed_download_ends_in_one_line(server, tmp_path, capsys, how):
    server.handler.behaviours = (how,)
    assert download_voc.main(["--root", str(tmp_path), "--years", "2007"], [archive(server)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: voc.tar cannot be downloaded (http")
    assert "use --from FILE" in last


def test_download_unpack_and_count(server, tmp_path, capsys):
    for expected in ("VOC2007 trainval: 3 photos in", "VOC2007 trainval: already complete, 3 photos"):
        assert download_voc.main(["--root", str(tmp_path), "--years", "2007"], [archive(server)]) == 0
        assert expected in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["VOCdevkit"]
    assert len(server.handler.requests) == 1


def test_a_local_archive_is_used_instead(server, tmp_path, capsys):
    (tmp_path / "mine.tar").write_bytes(CONTENT)
    words = ["--root", str(tmp_path / "root"), "--years", "2007"]
    assert download_voc.main([*words, "--from", str(tmp_path / "mine.tar")], [archive(server)]) == 0
    assert not server.handler.requests
    assert (tmp_path / "mine.tar").exists()
    (tmp_path / "bad.tar").write_bytes(CONTENT[:-1])
    for name, message in (("bad.tar", "is not one of voc.tar, or is damaged"), ("none.tar", "no such file")):
        assert download_voc.main([*words, "--from", str(tmp_path / name)], [archive(server)]) == 2
        assert message in capsys.readouterr().err


def test_a_wrong_number_of_photos_is_reported(server, tmp_path, capsys):
    assert download_voc.main(["--root", str(tmp_path), "--years", "2007"], [archive(server, num_photos=4)]) == 1
    assert "3 photos after unpacking, expected 4" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside_of_the_root.txt", "a/../../outside.txt"])
def test_nothing_is_unpacked_outside(tmp_path, name):
    (tmp_path / "bad.tar").write_bytes(tar({name: b"x"}))
    (tmp_path / "root").mkdir()
    with suppress(download_voc.DownloadError):  # an absolute path is extracted below the root instead
        unpack(tmp_path / "bad.tar", tmp_path / "root")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tar", "root"]
    assert not list(tmp_path.parent.glob("outside*"))
    assert not Path("/tmp/outside_of_the_root.txt").exists()


def test_links_are_refused(tmp_path):
    with tarfile.open(tmp_path / "bad.tar", "w") as file:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(member)
    with pytest.raises(download_voc.DownloadError, match="link is neither a file nor a folder"):
        unpack(tmp_path / "bad.tar", tmp_path)


def test_the_real_archives_are_known():
    assert [(each.year, each.split, each.num_photos) for each in voc_archives()] == [
        ("2007", "trainval", 5011), ("2007", "test", 4952), ("2012", "trainval", 11540),
    ]  # fmt: skip
    for each in voc_archives():
        assert len(each.digest.value) == 32
        assert all(url.endswith(each.file) for url in each.urls)
