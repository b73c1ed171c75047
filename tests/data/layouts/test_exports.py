"""What labelling tools and public sites hand out: each is trained on from new_config.py alone, with the right boxes."""

import numpy as np
import pytest

import train
from data.photos import Photos, load_photos
from scripts import new_config
from ssd.config_file import load_config
from tests.data.layouts.exports import EXPORTS, NAMES, SHOTS, Export

SMALL = ["train.epochs=null", "train.iterations=3", "train.batch_size=2", "model.width=0.05", "data.workers=0", "device=cpu"]


def assert_true(photos: Photos) -> set[int]:
    """Compares every photo's objects with what was drawn; returns which photos they are, by their pixels."""
    by_size = {(shot.width, shot.height): i for i, shot in enumerate(SHOTS)}
    assert len(by_size) == len(SHOTS)
    numbers = [photos.classes.index(name) for name in NAMES]
    found = []
    for i in range(len(photos)):
        shot = SHOTS[by_size[tuple(photos.sizes[i].tolist())]]
        expected = [[numbers[label], *box] for label, *box in shot.objects]
        rows = photos.objects(i)
        got = np.column_stack([photos.labels[rows], photos.boxes[rows]]).reshape(-1, 5)
        np.testing.assert_allclose(got, np.array(expected).reshape(-1, 5), atol=1e-3)
        found.append(SHOTS.index(shot))
    assert not photos.difficult.any()
    assert len(found) == len(set(found))
    return set(found)


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.write.__name__)
def test_an_export_trains_from_new_config_alone(export: Export, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export.write(tmp_path / "mine")
    output = tmp_path / "mine.yaml"
    assert new_config.main(["mine", "--output", str(output)]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert f"{export.layout.upper()} layout" in shown
    data = load_config(output).data
    parts = [load_photos(part, data.root, data.class_names).photos for part in (data.train, data.val)]
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
