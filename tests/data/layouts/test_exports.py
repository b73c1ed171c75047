"""What labelling tools and public sites hand out: each is trained on from new_config.py alone, with the right boxes."""

import numpy as np
import pytest

import train
from data.dataset.annotation_loader import load_annotations
from data.dataset.annotations import Annotations
from scripts import new_config
from ssd.config.file import load_config
from tests.data.layouts.exports import EXPORTS, NAMES, SHOTS, Export, photos, xmls

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("bare_machine")]

SMALL = ["train.epochs=null", "train.iterations=3", "train.batch_size=2", "model.width=0.05", "data.workers=0", "device=cpu"]


def assert_true(found: Annotations) -> set[int]:
    """Compares every photo's objects with what was drawn; returns which photos they are, by their sizes."""
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


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.write.__name__)
def test_an_export_trains_from_new_config_alone(export: Export, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export.write(tmp_path / "mine")
    output = tmp_path / "mine.yaml"
    assert new_config.main(["mine", "--output", str(output)]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert f"{export.layout.upper()} layout" in shown
    data = load_config(output).data
    parts = [load_annotations(part, data.root, data.class_names).photos for part in (data.train, data.val)]
    trained, evaluated = (assert_true(part) for part in parts)
    assert not trained & evaluated
    if export.num_train is None:
        assert trained | evaluated == set(range(len(SHOTS)))
        assert evaluated
    else:
        assert (trained, evaluated) == (
            set(range(export.num_train)), set(range(export.num_train, export.num_train + (export.num_val or 0)))
        )  # fmt: skip
    assert train.main(["--config", str(output), "--dry-run", *SMALL]) == 0  # three steps, and an evaluation
    assert "3 steps and 1 evaluations" in capsys.readouterr().out


def test_one_photo_cut_off_is_left_out_aloud(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shots = [SHOTS[1]._replace(name=f"{i:05d}") for i in range(60)]
    photos(tmp_path / "mine/images", shots)
    xmls(tmp_path / "mine/annots", shots)
    whole = (tmp_path / "mine/images/00017.jpg").read_bytes()
    (tmp_path / "mine/images/00017.jpg").write_bytes(whole[: len(whole) // 2])
    assert new_config.main(["mine", "--output", "mine.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "1 of" in shown
    assert "cannot be read and were left out (data.damaged: skip)" in shown
    config = load_config(tmp_path / "mine.yaml")
    assert config.data.damaged == "skip"
    assert train.main(["--config", "mine.yaml", "--dry-run", *SMALL]) == 0
