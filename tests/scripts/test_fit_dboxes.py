import re

import torch
import yaml

from scripts.fit_dboxes import main
from ssd.config.schema import ModelConfig
from ssd.dbox import make_dbox_list, spec_of
from ssd.preprocessing import IMAGENET
from ssd.weights.checkpoint import TrainState, load_checkpoint, save_checkpoint
from ssd.weights.pretrained import build_network, init_from, network_of
from tests.helpers.paths import ROOT


def test_the_printed_entries_fit_the_configuration(capsys, shapes_root, monkeypatch):
    monkeypatch.setattr("ssd.autoconfig.dbox_fit.STEPS", (1.3,))
    assert main([str(ROOT / "configs/quickstart.yaml"), f"data.root={shapes_root}"]) == 0
    shown = capsys.readouterr().out
    options = ModelConfig.model_validate({"pretrained": "none", **yaml.safe_load(shown[shown.index("model:") :])["model"]})
    assert make_dbox_list(spec_of(options.dboxes)).shape == (8732, 4)
    rows = re.findall(r"^  (\w[\w ]*?) +(\d+) +([\d.]+)% +([\d.]+)%$", shown, re.MULTILINE)
    (mean,) = (row for row in rows if row[0] == "mean over classes")
    classes = [row for row in rows if row[0] in ("circle", "square", "triangle", "star", "cross")]
    assert len(classes) == 5
    assert sum(int(row[1]) for row in classes) == int(mean[1])
    for column in (2, 3):
        assert abs(sum(float(row[column]) for row in classes) / 5 - float(mean[column])) < 0.1
    assert float(mean[3]) >= float(mean[2])


def test_the_fit_starts_from_the_configured_dboxes(capsys, shapes_root, monkeypatch):
    monkeypatch.setattr("ssd.autoconfig.dbox_fit.STEPS", ())
    dboxes = "{sizes: [301, 302, 303, 304, 305, 306, 307], ratios: [[2], [2, 3], [2, 3], [2, 3], [2], [2]]}"
    assert main([str(ROOT / "configs/quickstart.yaml"), f"data.root={shapes_root}", f"model.dboxes={dboxes}"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"mean over classes +\d+ +0\.0%", shown)
    assert shown.endswith("\nmodel:\n  dboxes: voc\n")  # a name where the best have one


def test_checkpoints_store_fitted_dboxes(tmp_path):
    dboxes = {"sizes": [10, 20, 40, 80, 160, 240, 300], "ratios": [[4], [2, 5], [2, 3], [2, 3], [2], [1.5]]}
    options = ModelConfig.model_validate({"pretrained": "none", "width": 0.05, "dboxes": dboxes})
    model = build_network(2, options)
    config = {"model": options.model_dump(mode="json")}
    save_checkpoint(tmp_path / "a.pt", TrainState(model.state_dict(), ["cat"], IMAGENET.to_plain(), config))
    again = network_of(load_checkpoint(tmp_path / "a.pt"))
    assert torch.equal(again.dbox_list, model.dbox_list)
    assert model.dbox_list[0, 2:].tolist() == [torch.tensor(10 / 300).item()] * 2
    usual = build_network(2, ModelConfig.model_validate({"pretrained": "none", "width": 0.05}))
    _, notes = init_from(usual, tmp_path / "a.pt", ["cat"])
    (note,) = (note for note in notes if "DBoxes" in note)
    assert "trained with other DBoxes" in note
    assert "model.dboxes: {sizes: [10.0, 20.0," in note
    assert not any("DBoxes" in note for note in init_from(again, tmp_path / "a.pt", ["cat"])[1])
