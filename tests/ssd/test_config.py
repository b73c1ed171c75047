from pathlib import Path

import pytest
import yaml

from ssd.config import VOC_CLASSES, Config
from ssd.config_entries import known_keys
from ssd.config_file import load_config
from tests.conftest import ROOT

LEAST = "data: {train: [{path: a}], val: [{path: b}]}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_loads_and_writes_out_every_key(path):
    config = load_config(path)
    values = yaml.safe_load(path.read_text())
    missing = []
    for key in known_keys():
        node = values
        for part in key.split("."):
            node = node[0] if isinstance(node, list) else node
            if part not in node:
                missing.append(key)
                break
            node = node[part]
    assert [key for key in missing if not key.endswith("val_fraction")] == []
    assert config.output_dir == f"runs/{path.stem}"


def test_the_published_recipe():
    config = load_config(ROOT / "configs/ssd300_voc0712.yaml")
    train = config.train
    assert config.data.class_names == VOC_CLASSES
    assert len(VOC_CLASSES) == 20
    assert (train.batch_size, train.iterations, train.optimizer, train.lr) == (32, 120_000, "sgd", 1e-3)
    assert (train.momentum, train.weight_decay, train.milestones) == (0.9, 5e-4, (80_000, 100_000))
    assert [source.path for source in config.data.train] == ["VOCdevkit/VOC2007", "VOCdevkit/VOC2012"]
    assert config.data.keep_difficult


def test_defaults_make_all_but_data_optional(tmp_path):
    config = load_config(write(tmp_path, LEAST))
    assert config.train.iterations == 120_000
    assert config == Config.model_validate(config.model_dump())
