"""Small data sets as exported by labelling tools and public sites, with their quirks."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from data.dataset.annotation_loader import LoadedAnnotations
from data.dataset.annotations import Annotations

# Overrides for a tiny training run.
SMALL = ["train.epochs=null", "train.iterations=3", "train.batch_size=2", "model.width=0.05", "data.workers=0", "device=cpu"]
NAMES = ("cat", "dog", "red kite")


class Shot(NamedTuple):
    """One photo and its objects."""

    name: str
    width: int
    height: int
    objects: tuple[tuple[int, int, int, int, int], ...]  # label; edges x1, y1, x2, y2 in pixels


def draw_shots(count: int = 10) -> list[Shot]:
    """Draw photos with one to three objects each. The first one has none."""
    rng = np.random.default_rng(0)
    shots = []
    for i in range(count):
        width, height = int(rng.integers(60, 100)), int(rng.integers(60, 100))
        objects = []
        for _ in range(int(rng.integers(1, 4)) if i else 0):
            x1, y1 = int(rng.integers(1, 30)), int(rng.integers(1, 30))
            objects.append((int(rng.integers(3)), x1, y1, x1 + int(rng.integers(9, 28)), y1 + int(rng.integers(9, 28))))
        shots.append(Shot(f"photo-{i:02d}", width, height, tuple(objects)))
    return shots


SHOTS = draw_shots()
WIDE = [Shot(f"photo-{i:02d}", 200, 100, ()) for i in range(3)]
PARTS = {"train": SHOTS[:6], "valid": SHOTS[6:8], "test": SHOTS[8:]}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def photo(path: Path, shot: Shot) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(shot.width).integers(0, 256, (shot.height, shot.width, 3), dtype=np.uint8)
    path.write_bytes(cv2.imencode(path.suffix.lower(), pixels)[1].tobytes())
    return path


def photos(folder: Path, shots: Sequence[Shot] = SHOTS, suffix: str = ".jpg") -> None:
    for shot in shots:
        photo(folder / f"{shot.name}{suffix}", shot)


def xml(
    shot: Shot, filename: str, extra: str = "<difficult>0</difficult>", number: Callable[[int], object] = int, path: str = ""
) -> str:
    """Return a VOC annotation: inclusive pixels, counted from 1."""
    objects = "".join(
        f"<object><name>{NAMES[label]}</name><pose>Unspecified</pose><truncated>0</truncated>{extra}<bndbox>"
        f"<xmin>{number(x1 + 1)}</xmin><ymin>{number(y1 + 1)}</ymin><xmax>{number(x2)}</xmax><ymax>{number(y2)}</ymax>"
        "</bndbox></object>"
        for label, x1, y1, x2, y2 in shot.objects
    )
    return (
        f"<annotation><folder>images</folder><filename>{filename}</filename>{f'<path>{path}</path>' if path else ''}"
        f"<source><database>Unknown</database></source><size><width>{shot.width}</width><height>{shot.height}</height>"
        f"<depth>3</depth></size><segmented>0</segmented>{objects}</annotation>"
    )


def xmls(folder: Path, shots: Sequence[Shot] = SHOTS, suffix: str = ".jpg", **options: Any) -> None:
    for shot in shots:
        write(folder / f"{shot.name}.xml", xml(shot, f"{shot.name}{suffix}", **options))


def lines(shot: Shot, first: int = 0) -> str:
    """Return YOLO's labels: centre and size, relative to the photo."""
    rows = []
    for label, x1, y1, x2, y2 in shot.objects:
        values = ((x1 + x2) / 2 / shot.width, (y1 + y2) / 2 / shot.height, (x2 - x1) / shot.width, (y2 - y1) / shot.height)
        rows.append(f"{label + first} {' '.join(f'{value:.8f}' for value in values)}\n")
    return "".join(rows)


def texts(folder: Path, shots: Sequence[Shot] = SHOTS, first: int = 0) -> None:
    for shot in shots:
        write(folder / f"{shot.name}.txt", lines(shot, first))


def yolo(folder: Path, names: str) -> None:
    photos(folder / "images")
    texts(folder / "labels", first=1)
    write(folder / "data.yaml", names)


def labelled(folder: Path, text: str, names: str = "names: [cat]\n") -> Path:
    """Photos of 200 × 100 pixels, each with the same labels."""
    photos(folder / "images", WIDE)
    for shot in WIDE:
        write(folder / f"labels/{shot.name}.txt", text)
    if names:
        write(folder / "data.yaml", names)
    return folder


def coco_file(folder: Path, content: dict[str, Any]) -> None:
    photos(folder / "images")
    dump(folder / "a.json", content)


def coco(shots: Sequence[Shot] = SHOTS, prefix: str = "", text: bool = False, first: int = 1, **extra: Any) -> dict[str, Any]:
    """Return the content of a COCO file; with `text`, all numbers are in quotes."""
    quoted = str if text else lambda value: value
    images, annotations = [], []
    for i, shot in enumerate(shots):
        image = {"id": quoted(i + 7), "file_name": f"{prefix}{shot.name}.jpg", "width": shot.width, "height": shot.height}
        images.append({**image, "license": 1})
        for label, x1, y1, x2, y2 in shot.objects:
            box = [quoted(value) for value in (float(x1), float(y1), float(x2 - x1), float(y2 - y1))]
            image_id = i + 7 if text else quoted(i + 7)
            row = {"id": len(annotations) + 1, "image_id": image_id, "category_id": quoted(label + first)}
            annotations.append(row | {"bbox": box, "area": 1.0, "iscrowd": 0, "segmentation": []} | extra)
    categories = [{"id": label + first, "name": name, "supercategory": ""} for label, name in enumerate(NAMES)]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def dump(path: Path, content: object) -> None:
    write(path, json.dumps(content))


def raccoon(folder: Path) -> None:
    photos(folder / "images")
    xmls(folder / "annotations", path="/Users/datitran/Desktop/raccoon/images/photo.jpg")
    write(folder / "data/train_labels.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\n")
    write(folder / "README.md", "# Raccoons\n")


def kangaroo(folder: Path) -> None:
    photos(folder / "images")
    xmls(folder / "annots")


def pets(folder: Path) -> None:
    photos(folder / "images")
    xmls(folder / "annotations/xmls", extra="<occluded>0</occluded><difficult>0</difficult>")
    for shot in SHOTS:
        photo(folder / f"annotations/trimaps/{shot.name}.png", shot)
        write(folder / f"annotations/trimaps/._{shot.name}.png", "macOS")
    rows = "".join(f"{shot.name} 1 1 1\n" for shot in SHOTS)
    write(folder / "annotations/list.txt", f"#Image CLASS-ID SPECIES BREED ID\n{rows}")
    write(folder / "annotations/trainval.txt", "".join(f"{shot.name} 1 1 1\n" for shot in SHOTS[:7]))
    write(folder / "annotations/test.txt", "".join(f"{shot.name} 1 1 1\n" for shot in SHOTS[7:]))


def labelimg_voc(folder: Path) -> None:
    photos(folder, suffix=".JPG")
    xmls(folder, suffix=".JPG", extra="<difficult>Unspecified</difficult>", path="C:\\Users\\me\\photos\\photo.JPG")


def labelimg_yolo(folder: Path) -> None:
    photos(folder, suffix=".png")
    texts(folder)
    write(folder / "classes.txt", "\n".join(NAMES) + "\n")


def roboflow_voc(folder: Path) -> None:
    for part, shots in PARTS.items():
        photos(folder / part, shots)
        xmls(folder / part, shots, path="photo_jpg.rf.1a2b3c.jpg")
    write(folder / "README.roboflow.txt", "mine - v1\nThe dataset includes 10 images.\n")


def roboflow_yolo(folder: Path) -> None:
    for part, shots in PARTS.items():
        photos(folder / part / "images", shots)
        texts(folder / part / "labels", shots)
    names = ", ".join(f"'{name}'" for name in NAMES)
    entries = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    write(folder / "data.yaml", f"{entries}\nnc: 3\nnames: [{names}]\n\nroboflow:\n  workspace: me\n  version: 1\n")
    write(folder / "README.dataset.txt", "# mine > 2024\nhttps://universe.roboflow.com\n")
    dump(folder / "stray.json", {"images": 3, "by": "me"})


def roboflow_darknet(folder: Path) -> None:
    for part, shots in PARTS.items():
        photos(folder / part, shots)
        texts(folder / part, shots)
        write(folder / part / "_darknet.labels", "\n".join(NAMES))


def roboflow_coco(folder: Path) -> None:
    for part, shots in PARTS.items():
        photos(folder / part, shots)
        content = coco(shots)
        content["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
        dump(folder / part / "_annotations.coco.json", content)


def label_studio_voc(folder: Path) -> None:
    for shot in SHOTS:
        photo(folder / f"images/1a2b3c4d-{shot.name}.jpg", shot)
        write(folder / f"Annotations/1a2b3c4d-{shot.name}.xml", xml(shot, f"1a2b3c4d-{shot.name}", number=float))


def label_studio_yolo(folder: Path) -> None:
    for shot in SHOTS:
        photo(folder / f"images/1a2b3c4d-{shot.name}.jpg", shot)
        write(folder / f"labels/1a2b3c4d-{shot.name}.txt", lines(shot))
    write(folder / "classes.txt", "\n".join(NAMES))
    categories = [{"id": label, "name": name} for label, name in enumerate(NAMES)]
    dump(folder / "notes.json", {"categories": categories, "info": {"year": 2024, "contributor": "Label Studio"}})


def label_studio_coco(folder: Path) -> None:
    photos(folder / "images")
    dump(folder / "result.json", coco(prefix="images\\", first=0, ignore=0))


def cvat_voc(folder: Path) -> None:
    photos(folder / "JPEGImages")
    xmls(folder / "Annotations", extra="<occluded>0</occluded><difficult>0</difficult>", number=lambda value: f"{value}.00")
    write(folder / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\n")
    write(folder / "ImageSets/Main/default.txt", "".join(f"{shot.name}\n" for shot in SHOTS))
    for name in NAMES:
        rows = "".join(f"{shot.name} {i % 2 * 2 - 1}\n" for i, shot in enumerate(SHOTS))
        write(folder / f"ImageSets/Main/{name}_default.txt", rows)


def cvat_coco(folder: Path) -> None:
    photos(folder / "images/default")
    dump(folder / "annotations/instances_default.json", coco(attributes={"occluded": False}))


def cvat_coco_flat(folder: Path) -> None:
    photos(folder / "images")
    dump(folder / "annotations/instances_default.json", coco(attributes={"occluded": False}))


def cvat_yolo(folder: Path) -> None:
    photos(folder / "obj_train_data")
    texts(folder / "obj_train_data")
    write(folder / "obj.names", "".join(f"{name}\n" for name in NAMES))
    write(folder / "obj.data", "classes = 3\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    write(folder / "train.txt", "".join(f"data/obj_train_data/{shot.name}.jpg\n" for shot in SHOTS))


def cvat_ultralytics(folder: Path) -> None:
    photos(folder / "images/train")
    texts(folder / "labels/train")
    names = "".join(f"  {label}: {name}\n" for label, name in enumerate(NAMES))
    write(folder / "data.yaml", f"names:\n{names}path: .\ntrain: train.txt\n")
    write(folder / "train.txt", "".join(f"data/images/train/{shot.name}.jpg\n" for shot in SHOTS))


def ultralytics(folder: Path) -> None:
    """A data set from an Ultralytics tutorial, with numbers from 1 and quoted keys."""
    for part, shots in (("train", SHOTS[:6]), ("val", SHOTS[6:])):
        photos(folder / "images" / part, shots)
        texts(folder / "labels" / part, shots, first=9)
    names = "".join(f'  "{label + 9}": {name}\n' for label, name in enumerate(NAMES))
    write(folder / "mine.yaml", f"path: ../datasets/mine\ntrain: images/train\nval: images/val\ntest:\n\nnames:\n{names}")


def coco2017(folder: Path) -> None:
    for part, shots in (("train2017", SHOTS[:6]), ("val2017", SHOTS[6:])):
        photos(folder / part, shots)
        content = coco(shots)
        dump(folder / f"annotations/instances_{part}.json", content)
        persons = [item | {"keypoints": [0, 0, 0], "num_keypoints": 0} for item in content["annotations"][:1]]
        dump(folder / f"annotations/person_keypoints_{part}.json", content | {"annotations": persons})
        captions = [{"id": i, "image_id": i + 7, "caption": "A photo."} for i in range(len(shots))]
        dump(folder / f"annotations/captions_{part}.json", {"images": content["images"], "annotations": captions})


def macos(folder: Path) -> None:
    """A folder packed on a Mac, one level down in its archive."""
    photos(folder / "mine/JPEGImages")
    xmls(folder / "mine/Annotations")
    for shot in SHOTS:
        write(folder / f"mine/JPEGImages/._{shot.name}.jpg", "macOS")
        write(folder / f"mine/Annotations/._{shot.name}.xml", "macOS")
        write(folder / f"__MACOSX/mine/Annotations/._{shot.name}.xml", "macOS")
    write(folder / "mine/.DS_Store", "macOS")


def links(folder: Path) -> None:
    """Photos elsewhere, each behind a link, and a circular link."""
    photos(folder.parent / "elsewhere")
    (folder / "images").mkdir(parents=True)
    for shot in SHOTS:
        (folder / f"images/{shot.name}.jpg").symlink_to(folder.parent / f"elsewhere/{shot.name}.jpg")
    xmls(folder / "annotations")
    (folder / "again").symlink_to(folder, target_is_directory=True)
    (folder / "self").symlink_to("self")


def nested(folder: Path) -> None:
    """Videos whose frames have the same names."""
    for i, shot in enumerate(SHOTS):
        photo(folder / f"images/film {i}/cam_a/frame.jpg", shot)
        write(folder / f"labels/film {i}/cam_a/frame.txt", lines(shot))
    write(folder / "labels/classes.txt", "\n".join(NAMES))


def capitals(folder: Path) -> None:
    for part, shots in (("Train", PARTS["train"]), ("Validation", PARTS["valid"]), ("Test", PARTS["test"])):
        photos(folder / part / "Images", shots)
        xmls(folder / part / "Labels", shots)


def quoted(folder: Path) -> None:
    photos(folder / "photos")
    dump(folder / "labels.json", coco(text=True))


def pascal(folder: Path) -> None:
    photos(folder / "JPEGImages")
    xmls(folder / "Annotations")
    for shot in SHOTS[:4]:
        photo(folder / f"SegmentationClass/{shot.name}.png", shot)
    for name, shots in (("train", SHOTS[:4]), ("val", SHOTS[4:7]), ("trainval", SHOTS[:7]), ("test", SHOTS[7:])):
        write(folder / f"ImageSets/Main/{name}.txt", "".join(f"{shot.name}\n" for shot in shots))
        write(folder / f"ImageSets/Main/cat_{name}.txt", "".join(f"{shot.name} -1\n" for shot in shots))
        write(folder / f"ImageSets/Segmentation/{name}.txt", f"{SHOTS[0].name}\n")


def pose(folder: Path) -> None:
    for part, shots in (("train", SHOTS[:6]), ("val", SHOTS[6:])):
        photos(folder / "images" / part, shots)
        for shot in shots:
            points = " 0.99 0.98 2 0.01 0.02 1 0 0 0"
            write(folder / f"labels/{part}/{shot.name}.txt", lines(shot).replace("\n", f"{points}\n"))
    names = ", ".join(NAMES)
    write(folder / "data.yaml", f"path: .\ntrain: images/train\nval: images/val\nkpt_shape: [3, 3]\nnames: [{names}]\n")


def copied(folder: Path) -> None:
    """A VOC folder beside a backup of its annotations."""
    kangaroo(folder)
    shutil.copytree(folder / "annots", folder / "annots_old")


class Export(NamedTuple):
    """An export, and the expected sizes of its splits."""

    write: Callable[[Path], None]
    layout: str
    num_train: int | None = None  # photos; None if the folder has no splits
    num_val: int | None = None


EXPORTS = [
    Export(raccoon, "voc"), Export(kangaroo, "voc"), Export(pets, "voc", 7, 3), Export(pascal, "voc", 4, 3),
    Export(labelimg_voc, "voc"), Export(labelimg_yolo, "yolo"),
    Export(roboflow_voc, "voc", 6, 2), Export(roboflow_coco, "coco", 6, 2),
    Export(roboflow_yolo, "yolo", 6, 2), Export(roboflow_darknet, "yolo", 6, 2),
    Export(label_studio_voc, "voc"), Export(label_studio_yolo, "yolo"), Export(label_studio_coco, "coco"),
    Export(cvat_voc, "voc"), Export(cvat_coco, "coco"), Export(cvat_coco_flat, "coco"),
    Export(cvat_yolo, "yolo"), Export(cvat_ultralytics, "yolo"), Export(ultralytics, "yolo", 6, 4),
    Export(coco2017, "coco", 6, 4), Export(macos, "voc"), Export(links, "voc"), Export(nested, "yolo"),
    Export(capitals, "voc", 6, 2), Export(quoted, "coco"), Export(pose, "yolo", 6, 4), Export(copied, "voc"),
]  # fmt: skip


def numbers_of(loaded: LoadedAnnotations) -> set[int]:
    """Return the numbers of the drawn photos."""
    return {int(Path(loaded.photos.path(i)).stem[-2:]) for i in range(len(loaded.photos))}


def assert_true(found: Annotations) -> set[int]:
    """Compare every photo's objects with the drawn ones. Return the photos' numbers, found by their sizes."""
    by_size = {(shot.width, shot.height): i for i, shot in enumerate(SHOTS)}
    assert len(by_size) == len(SHOTS)
    numbers = [found.classes.index(name) for name in NAMES]
    indices = []
    for i in range(len(found)):
        shot = SHOTS[by_size[tuple(found.sizes[i].tolist())]]
        expected = [[numbers[label], *box] for label, *box in shot.objects]
        rows = found.objects(i)
        got = np.column_stack([found.labels[rows], found.boxes[rows]]).reshape(-1, 5)
        np.testing.assert_allclose(got, np.array(expected).reshape(-1, 5), atol=1e-3)
        indices.append(SHOTS.index(shot))
    assert not found.difficult.any()
    assert len(indices) == len(set(indices))
    return set(indices)
