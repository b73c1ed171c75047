"""Run every command and every Python block of README.md and docs/ on small data in a copy of the project."""

import hashlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data.shapes import write_shapes
from scripts import download_voc
from ssd.system.download import Digest
from tests.helpers.paths import PAGES, RECIPES, ROOT
from tests.helpers.ports import Amdegroot
from tests.helpers.processes import completed

SOURCES = ("train.py", "ssd", "data", "scripts", "docs", "Makefile", "requirements.txt", "requirements-dev.txt")
STARTS = ("python ", "torchrun ", "tensorboard ", "make ", "pytest ", "scripts/", "train.py ")
STAND_INS = {"FILE": "configs/mine.yaml", "CONFIG": "configs/mine.yaml", "RUN_FOLDER": "runs/faulty", "N": "2"}
# Options and entries that make a command short. Appended options win, but the command's own entries stay.
SMALL = {
    "train.py": (
        "model.width=0.05", "model.pretrained=none", "model.init_from=null", "model.freeze=null",
        "train.iterations=2", "train.warmup=1", "train.batch_size=4",
        # Statistics of only two batches would make all scores 1 and their order random, so exports could not be checked.
        "model.batch_norm=none", "train.lr=1e-4", "train.precision=float32", "data.workers=0", "eval.batch_size=8",
    ),
    "scripts/new_config.py": ("--scratch",),  # allows any width, and needs no download
    "scripts/make_shapes.py": ("--train=12", "--val=4"),
    "scripts/benchmark_gpu.py": ("--device=cpu", "--only=loader", "--rounds=1", "--batch-size=2"),
    "scripts/benchmark.py": ("--only=loss", "--rounds=1", "--batch-size=2"),
    "scripts/export.py": ("--photos=photos",),
    "scripts/slim.py": ("--width=0.04",),  # narrower than the runs here
    "tensorboard": ("--inspect",),
}  # fmt: skip


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return language and text of a page's code blocks."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands() -> list[str]:
    """Return all commands of the pages, each once, with real names for placeholders. Skip synopses."""
    found = []
    for page in PAGES:
        prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        lines = [line for language, text in blocks(page) if not language and not is_script(text) for line in text.splitlines()]
        for line in [*lines, *re.findall(r"`([^`\n]+)`", prose)]:
            command = line.partition("  # ")[0].strip().removeprefix(".venv/bin/")
            if command.startswith(STARTS) and " " in command and not re.search(r"\s\[|\.\.\.", command):
                command = f"python {command}" if command.startswith(("scripts/", "train.py")) else command
                stand_ins = {**STAND_INS, "FILE": "theirs.pth"} if "convert_weights" in command else STAND_INS
                found.append(" ".join(stand_ins.get(word, word) for word in command.split(" ")))
    return list(dict.fromkeys(found))


def is_script(text: str) -> bool:
    return text.startswith("#!/bin/bash")


def voc_folder(folder: Path, source: Path, names: tuple[str, ...], **splits: str) -> None:
    """Write the shapes as a data set with other class names and splits."""
    shutil.copytree(source, folder)
    for path in folder.glob("Annotations/*.xml"):
        text = path.read_text()
        for shape, name in zip(("circle", "square", "triangle", "star", "cross"), names * 5, strict=False):
            text = text.replace(f"<name>{shape}</name>", f"<name>{name}</name>")
        path.write_text(text)
    lists = {name: (folder / f"ImageSets/Main/{name}.txt").read_text() for name in set(splits.values())}
    shutil.rmtree(folder / "ImageSets")
    for split, of_shapes in splits.items():
        path = folder / f"ImageSets/Main/{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lists[of_shapes])


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, with data sets and photos named as in the docs."""
    folder = tmp_path_factory.mktemp("project")
    for name in (*SOURCES, *(str(recipe.relative_to(ROOT)) for recipe in RECIPES)):
        (folder / name).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    shapes = folder / "datasets/shapes"
    write_shapes(shapes, num_train=12, num_val=4, seed=5)
    voc_folder(folder / "datasets/mine", shapes, ("apple", "pear"))
    voc_folder(folder / "datasets/bccd", shapes, ("RBC", "WBC", "Platelets"), trainval="train", test="val")
    voc_folder(folder / "datasets/VOCdevkit/VOC2007", shapes, ("cat", "dog"), trainval="train", test="val")
    voc_folder(folder / "datasets/VOCdevkit/VOC2012", shapes, ("car", "bus"), trainval="train")
    voc_folder(folder / "datasets/voc07s/VOC2007", shapes, ("car", "bus"), train="train", val="val")
    photos = sorted(shapes.glob("JPEGImages/*.jpg"))
    for name, photo in zip(("photos/1.jpg", "photos/2.jpg", "more/3.jpg", "photo.jpg", "a.jpg", "b.jpg"), photos, strict=False):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(photo, folder / name)
    unlabelled = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)  # in no data set
    cv2.imwrite(str(folder / "photos/unlabelled.png"), unlabelled)
    writer = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (200, 160))
    for shade in (60, 200):
        writer.write(np.full((160, 200, 3), shade, np.uint8))
    writer.release()
    for name in ("ssd300_mAP_77.43_v2.pth", "theirs.pth"):
        torch.save(Amdegroot(21).state_dict(), folder / name)
    return folder


@cache
def run(command: str, project: Path) -> str:
    """Provide a command's files, run it in the copy, and return its output."""
    words = shlex.split(command)
    if "--eval-only" in words:
        run.__wrapped__(command.replace(" --eval-only", ""), project)  # another command may have replaced the run
    for word in words:
        provide(word, project)
    script = next((word for word in words if word in SMALL), "")
    keys = {word.partition("=")[0] for word in words}
    if "model.init_from=ssd300_mAP_77.43_v2.pth" in words:
        keys |= {"model.width", "train.iterations", "train.batch_size"}  # the weights need the full, slow network
        words += ["train.iterations=1", "train.batch_size=1"]
    words += [word for word in SMALL.get(script, ()) if word.startswith("--") or word.partition("=")[0] not in keys]
    if script == "train.py" and not {"--resume", "--eval-only", "--dry-run"} & keys:
        words += ["--overwrite"]
    output = shell(words, project)
    if "train.py" in command and "--dry-run" not in command:
        assert re.match(r"mAP@0\.5 \(VOC\d\d .*\) \d\.\d{4}$", output.splitlines()[-1]), output
    return output


def provide(word: str, project: Path) -> None:
    """Make a command's input file with the commands that the docs name for it."""
    path = word.rpartition("=")[2]
    if (project / path).exists():
        return
    if path == "configs/mine.yaml":
        run("python scripts/new_config.py datasets/mine", project)
    elif path == "runs/faulty":
        faulty = ["python", "train.py", "--config", "configs/quickstart.yaml", "output_dir=runs/faulty"]
        shell([*faulty, *SMALL["train.py"], "train.lr=1e30", "train.iterations=20", "train.warmup=0"], project, code=1)
    elif path == "runs/other/checkpoints/best.pt":
        provide("runs/quickstart/checkpoints/best.pt", project)
        shutil.copytree(project / "runs/quickstart", project / "runs/other")
    elif path.endswith("best.pt"):
        run(f"python train.py --config configs/{Path(path).parts[1]}.yaml", project)
    elif path.endswith(".onnx"):
        stem, _, form = path.removesuffix(".onnx").partition(".")
        run(f"python scripts/export.py {stem}.pt{' --heads raw' if form == 'raw' else ''}", project)


def shell(words: list[str], project: Path, code: int = 0) -> str:
    program = {
        "python": [sys.executable],
        "torchrun": [sys.executable, "-m", "torch.distributed.run"],
        "tensorboard": [sys.executable, "-m", "tensorboard.main"],
    }[words[0]]
    done = completed([*program, *words[1:]], timeout=300, cwd=project, env=environment())
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def environment() -> dict[str, str]:
    folder = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": ""}


def test_there_are_commands():
    assert len(commands()) > 25


@pytest.mark.parametrize("command", commands())
def test_every_command_runs(command, project, monkeypatch, capsys):
    if command.startswith("make "):
        check_make(command, project)
    elif command.startswith("pytest ") or "torture.py" in command:
        assert (ROOT / command.split()[1]).is_file()  # tested elsewhere; torture.py in test_survival.py
    elif "--device cuda" in command and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    elif "download_voc.py" in command:
        check_download(command, project, monkeypatch, capsys)
    else:
        run(command, project)
    if "--output docs/matching.jpg" in command:
        assert cv2.imread(str(project / "docs/matching.jpg")) is not None


def check_make(command: str, project: Path) -> None:
    """Run the commands of a make target in the existing environment."""
    done = subprocess.run(["make", "-n", command.split()[1]], cwd=project, capture_output=True, text=True, check=True)
    lines = [line.replace(".venv/bin/", "") for line in done.stdout.splitlines()]
    if command in ("make test", "make test-fast"):
        of_pytest = "python -m pytest" if command == "make test" else 'python -m pytest -m "not slow"'
        assert {"ruff check .", "pyright"} <= set(lines)
        assert any(line.startswith(of_pytest) for line in lines)
        return
    assert any("requirements.txt" in line for line in lines)
    if command == "make install":
        return
    assert run("python scripts/make_shapes.py datasets/drawn", project)
    (ours,) = [line for line in lines if line.startswith("python train.py")]
    run(ours, project)


def check_download(command: str, project: Path, monkeypatch, capsys) -> None:
    """Download small local archives instead of the real ones."""
    archives = []
    for each in download_voc.voc_archives():
        path = project / "mirror" / each.file
        path.parent.mkdir(exist_ok=True)
        base = f"VOCdevkit/VOC{each.year}"
        with tarfile.open(path, "w") as file:
            file.add(project / "datasets" / base, base)
        ids = (project / "datasets" / base / f"ImageSets/Main/{each.split}.txt").read_text().split()
        digest = hashlib.md5(path.read_bytes()).hexdigest()
        archives.append(each._replace(digest=Digest("md5", digest), urls=(path.as_uri(),), num_photos=len(ids)))
    (project / "fresh").mkdir(exist_ok=True)
    monkeypatch.chdir(project / "fresh")
    assert download_voc.main(command.split()[2:], archives) == 0
    assert "VOC2012 trainval: 12 photos in datasets/VOCdevkit/VOC2012" in capsys.readouterr().out


@pytest.mark.parametrize("page, text", [(page, text) for page in PAGES for kind, text in blocks(page) if kind == "python"])
def test_every_python_block_runs(page, text, project):
    for path in ("runs/mine/checkpoints/best.pt", *re.findall(r'"(runs/\S+\.onnx)"', text)):
        provide(path, project)
    given = "import torch; images = torch.zeros(2, 3, 300, 300); targets = [torch.tensor([[0.1, 0.1, 0.6, 0.6, 3]])] * 2\n"
    shell(["python", "-c", given + text], project)


def test_the_job_for_slurm_runs(project, tmp_path):
    (text,) = [text for page in PAGES for _, text in blocks(page) if is_script(text)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    small = " ".join(shlex.quote(word) for word in SMALL["train.py"])
    for old, new in (("29500", str(port)), ("/shared/", f"{tmp_path}/"), ("nproc-per-node 4", "nproc-per-node 1")):
        text = text.replace(old, new)
    (tmp_path / "job.sh").write_text(text.replace("--resume auto", f"--resume auto {small}"))
    # A cluster of two machines; this machine stands for both.
    stubs = {"scontrol": "echo localhost; echo other", "srun": '"$@" & first=$!; "$@" || exit 1; wait $first'}
    for name, line in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    around = environment()
    slurm = {"SLURM_JOB_NODELIST": "nodes[1-2]", "SLURM_JOB_ID": "7"}
    around |= {"PATH": f"{tmp_path}:{around['PATH']}", **slurm, "OMP_NUM_THREADS": "1"}
    words = ["bash", str(tmp_path / "job.sh")]
    done = subprocess.run(words, cwd=project, capture_output=True, text=True, timeout=300, env=around)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 process(es)" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("mAP@0.5 (VOC07 11-point)")
    assert (tmp_path / "runs/voc0712/checkpoints/last.pt").exists()
