"""VOC annotations and folders of small photos."""

import zlib
from pathlib import Path

import cv2
import numpy as np


def item(name: str | None = "cat", box: tuple | None = (11, 21, 30, 40), extra: str = "") -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box or (), strict=False)
    corners = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    named = f"<name>{name}</name>" if name is not None else ""
    return f"<object>{named}{extra}{f'<bndbox>{corners}</bndbox>' if box is not None else ''}</object>"


def xml(*items: str, size: tuple[int, int] | None = (100, 80)) -> str:
    given = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    return f"<annotation>{given}{''.join(items)}</annotation>"


def pixels_of(name: str) -> np.ndarray:
    """Return 80 × 100 grey squares that differ for each name."""
    bits = np.unpackbits(np.frombuffer(zlib.crc32(name.encode()).to_bytes(4, "big"), np.uint8))[:20]
    return np.kron(96 + 64 * bits.reshape(4, 5, 1), np.ones((20, 20, 3), np.uint8)).astype(np.uint8)


def make_folder(folder: Path, photos: dict[str, str], splits: dict[str, str] | None = None, suffix: str = ".jpg") -> None:
    for part in ("JPEGImages", "Annotations"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, text in photos.items():
        cv2.imwrite(str(folder / "JPEGImages" / f"{name}{suffix}"), pixels_of(name))
        (folder / "Annotations" / f"{name}.xml").write_text(text, encoding="utf-8")
    for split, text in (splits or {}).items():
        (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(text, encoding="utf-8")
