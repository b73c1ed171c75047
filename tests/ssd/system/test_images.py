import io
import os
import re
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from ssd.system import images
from ssd.system.images import SUFFIXES, ImageError, TooLarge, decode_stored, printable, read_bytes, read_photo, write_picture
from ssd.system.stop import Stopped
from tests.helpers.photos import DAMAGED, JPEG, MIDDLE, NOISE

# Blocks of different colours, large enough for lossy formats.
PIXELS = np.kron(np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8), np.ones((32, 32, 1), np.uint8))


def save(path, orientation: int) -> Image.Image:
    """Save the pixels; return them as Pillow turns them upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if path.suffix == ".webp" else {"subsampling": 0} if path.suffix == ".jpg" else {}
    Image.fromarray(PIXELS).save(path, exif=exif, **options)
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(tmp_path, suffix, orientation):
    path = tmp_path / f"a{suffix}"
    expected = np.asarray(save(path, orientation)).astype(int)
    image = read_photo(path)
    assert image.shape == expected.shape
    assert np.abs(image - expected).mean() < 6
    assert np.abs(decode_stored(read_bytes(path), path)[0].pixels.astype(int) - PIXELS).mean() < 6


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_names_not_in_utf_8(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9") / os.fsdecode(b"\xff.png")
    write_picture(path, PIXELS)
    np.testing.assert_array_equal(read_photo(path), PIXELS)
    with pytest.raises(ImageError, match=r"caf\\xe9/none.jpg: cannot be read"):
        read_photo(path.with_name("none.jpg"))
    assert printable(path).endswith("caf\\xe9/\\xff.png")
    assert printable("чайка 猫\n.jpg") == "чайка 猫\\x0a.jpg"


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16"])
def test_tiff_modes(tmp_path, mode):
    grey = PIXELS[..., 1]
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    image.save(tmp_path / "a.tiff")
    expected = (grey > 127) * 255 if mode == "1" else grey
    found = read_photo(tmp_path / "a.tiff")
    assert found.shape == PIXELS.shape
    if mode != "1":  # which is dithered
        np.testing.assert_allclose(found, np.repeat(expected[..., None], 3, axis=2), atol=1)


def test_libraries_print_nothing(tmp_path, capfd):
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, "PNG", icc_profile=b"no profile" * 20)
    (tmp_path / "a.png").write_bytes(content.getvalue())
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png"), PIXELS)
    (tmp_path / "zeros.png").write_bytes(cv2.imencode(".png", PIXELS)[1].tobytes().replace(b"IDAT", b"IDAT" + bytes(9)))
    with pytest.raises(ImageError, match=r"zeros.png: is damaged or truncated"):
        read_photo(tmp_path / "zeros.png")
    for suffix in (".png", ".jpg", ".tif", ".webp", ".bmp"):
        encoded = cv2.imencode(suffix, PIXELS)[1]
        (tmp_path / f"cut{suffix}").write_bytes(encoded[: len(encoded) // 2].tobytes())
        with pytest.raises(ImageError, match=f"cut{suffix}: is "):
            read_photo(tmp_path / f"cut{suffix}")
    with pytest.raises(ImageError, match="70000 × 1 pixels cannot be written as"):
        write_picture(tmp_path / "too.jpg", np.zeros((1, 70000, 3), np.uint8))
    assert capfd.readouterr() == ("", "")


PROGRESSIVE = cv2.imencode(".jpg", NOISE, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
RESTARTS = cv2.imencode(".jpg", PIXELS, [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[1].tobytes()


@pytest.mark.parametrize(
    "content",
    [
        DAMAGED,
        JPEG[:MIDDLE] + b"\xff\xd9",
        PROGRESSIVE[:MIDDLE] + b"\xff\0" * 9 + PROGRESSIVE[MIDDLE:],
        RESTARTS.replace(b"\xff\xd1", b"\xff\xd5"),
    ],
    ids=["premature end", "half of it", "bad Huffman code", "found marker"],
)
def test_damaged_jpeg_is_rejected_by_name(tmp_path, capfd, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.jpg: is damaged or truncated"):
        read_photo(tmp_path / "a.jpg")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "content",
    [JPEG[:-2] + bytes(40) + JPEG[-2:], JPEG + b"more", JPEG.replace(b"JFIF\0\1", b"JFIF\0\0")],
    ids=["padded", "followed", "revision"],
)
def test_harmless_jpeg_warnings_are_hidden(tmp_path, capfd, content):
    (tmp_path / "a.jpg").write_bytes(content)
    expected = cv2.imdecode(np.frombuffer(JPEG, np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.jpg"), expected)
    assert capfd.readouterr() == ("", "")


def test_concurrent_decoding_rejects_only_damaged_photos(capfd):
    """Standard error is not redirected meanwhile."""
    contents = [DAMAGED if number % 7 == 3 else JPEG for number in range(70)]
    before = os.fstat(2)

    def is_refused(content: bytes) -> bool:
        assert os.path.samestat(os.fstat(2), before)
        try:
            decode_stored(np.frombuffer(content, np.uint8), "a.jpg")
        except ImageError:
            return True
        return False

    filters = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(is_refused, contents)) == [content == DAMAGED for content in contents]
    assert warnings.filters == filters
    assert capfd.readouterr() == ("", "")


def bomb(width: int, height: int, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("1", (width, height)).save(content, kind)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [(bomb(16_384, 8_200), "has 16384 × 8200 pixels"), (bomb(24_000, 24_000), "has 576,000,000 pixels")],
    ids=["Pillow lets it pass", "Pillow refuses it"],
)
def test_oversized_photo_is_rejected_by_its_header(tmp_path, content, said, monkeypatch):
    monkeypatch.setattr(images, "to_rgb", None)
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(TooLarge, match=f"a.jpg: {said}, more than 134,217,728; scale it down"):
        read_photo(tmp_path / "a.jpg")
    assert Image.MAX_IMAGE_PIXELS == 89_478_485  # Pillow's own limit is unchanged


def test_pixels_without_a_known_range_are_rejected(tmp_path):
    Image.fromarray(PIXELS[..., 0].astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif: pixels are floating-point numbers without a known range; save it with 8 or"):
        read_photo(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        (np.float32, "3 channel(s) of 32-bit floating-point numbers"),
        (np.float64, "3 channel(s) of 64-bit floating-point numbers"),
        (np.int16, "3 channel(s) of 16-bit signed integers"),
    ],
)
def test_unsupported_tiff_pixels_are_named(dtype, said):
    encoded = cv2.imencode(".tif", PIXELS.astype(dtype))[1]
    with pytest.raises(ImageError, match=re.escape(f"a.tif: {said} are not supported; save it")):
        decode_stored(encoded, "a.tif")
    with pytest.raises(ImageError, match="is not a supported image"):
        decode_stored(encoded[:12], "a.tif")


def test_16_bit_tiff_with_white_zero(tmp_path):
    grey = PIXELS[..., 0]
    Image.fromarray(grey.astype(np.uint16) << 8).save(tmp_path / "a.tif", tiffinfo={262: 0})
    assert np.array_equal(read_photo(tmp_path / "a.tif")[..., 0], 255 - grey)


def test_suffixes_cover_the_formats():
    Image.init()
    kinds = Image.registered_extensions()
    assert {suffix for suffix, kind in kinds.items() if kind in images.FORMATS} - {*SUFFIXES} == {".pfm"}  # no known range


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_is_read(tmp_path, suffix):
    kind = Image.registered_extensions().get(suffix, "PPM")
    path = tmp_path / f"a{suffix}"
    if suffix == ".ras":  # which Pillow cannot write
        path.write_bytes(cv2.imencode(suffix, PIXELS[..., ::-1])[1].tobytes())
    else:
        Image.fromarray(PIXELS).convert({".pbm": "1", ".pgm": "L"}.get(suffix, "RGB")).save(path, kind)
    expected = PIXELS.mean(axis=2, keepdims=True) if suffix in (".pbm", ".pgm") else PIXELS
    found = read_photo(path)
    assert found.shape == PIXELS.shape
    assert np.abs(found.astype(float) - expected).mean() < (130 if suffix == ".pbm" else 25)
    write_picture(path, PIXELS)  # pictures of detections keep the suffix
    assert np.abs(read_photo(path).astype(int) - PIXELS).mean() < 25


def test_16_bit_pgm(tmp_path):
    grey = PIXELS[..., 0].astype(np.uint16) * 257
    (tmp_path / "a.pgm").write_bytes(b"P5 96 64 65535 " + grey.astype(">u2").tobytes())
    np.testing.assert_array_equal(read_photo(tmp_path / "a.pgm")[..., 1], PIXELS[..., 0])


def test_first_of_several_frames(tmp_path):
    frames = [Image.fromarray(np.full((8, 9, 3), shade, np.uint8)) for shade in (200, 10)]
    for kind in ("gif", "webp", "png"):
        frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:])
        np.testing.assert_allclose(read_photo(tmp_path / f"a.{kind}"), 200, atol=3)


def test_eps_is_never_opened(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match=r"a\.jpg: is not a supported image"):
        read_photo(tmp_path / "a.jpg")


def test_stop_request_during_decoding_is_not_damage(tmp_path, monkeypatch):
    """Without loader processes, a signal may arrive while a photo is decoded."""
    Image.new("RGB", (20, 20)).save(tmp_path / "a.jpg")
    monkeypatch.setattr(images, "_decode_jpeg", Mock(side_effect=Stopped(15)))
    with pytest.raises(Stopped):
        images.read_photo(tmp_path / "a.jpg")
