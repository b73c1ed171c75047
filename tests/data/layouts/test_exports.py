"""Exports of labelling tools and public sites: new_config.py alone prepares the training, with the right boxes."""

import pytest

import train
from data.dataset.annotation_loader import load_annotations
from scripts import new_config
from ssd.config.file import load_config
from tests.helpers.exports import EXPORTS, SHOTS, SMALL, Export, assert_true, photos, xmls

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("bare_machine")]


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.write.__name__)
def test_an_export_trains_from_new_config_alone(export: Export, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export.write(tmp_path / "mine")
    output = tmp_path / "mine.yaml"
    assert new_config.main(["mine", "--output", str(output)]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert f"{export.layout.upper()} layout" in shown
    data = load_config(output).data
    parts = [load_annotations(data, part).photos for part in ("train", "val")]
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


def test_a_truncated_photo_is_left_out_with_a_note(tmp_path, capsys, monkeypatch):
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
