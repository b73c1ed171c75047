import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from ssd.architecture import SSD300_VGG16
from ssd.config.file import load_config
from ssd.config.schema import VOC_CLASSES, Config, ConfigError, ModelConfig
from ssd.model import CONV4_3_NORMS
from tests.helpers.paths import RECIPES, ROOT

LEAST = "data: {train: [{path: a}], val: [{path: b}]}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_published_recipe():
    config = load_config(ROOT / "configs/ssd300_voc0712.yaml")
    train = config.train
    assert config.data.class_names == VOC_CLASSES
    assert len(VOC_CLASSES) == 20
    assert (train.batch_size, train.iterations, train.optimizer, train.lr) == (32, 120_000, "sgd", 1e-3)
    assert (train.momentum, train.weight_decay, train.milestones) == (0.9, 5e-4, (80_000, 100_000))
    assert [source.path for source in config.data.train] == ["VOCdevkit/VOC2007", "VOCdevkit/VOC2012"]
    assert config.data.keep_difficult


def test_recipe_from_scratch():
    """As in Zhu et al., ScratchDet, section 4, and the solver of its published code."""
    config = load_config(ROOT / "configs/ssd300_voc0712_scratch.yaml")
    train, model = config.train, config.model
    assert (train.batch_size, train.iterations, train.optimizer, train.lr) == (128, 100_000, "sgd", 0.05)
    assert (train.momentum, train.weight_decay, train.milestones) == (0.9, 5e-4, (40_000, 75_000, 90_000))
    assert (train.warmup, train.schedule, train.clip_grad_norm) == (500, "milestones", None)
    assert (model.pretrained, model.batch_norm, model.conv4_3_norm) == ("none", "all", "none")
    assert config.data == load_config(ROOT / "configs/ssd300_voc0712.yaml").data


def test_only_data_is_required(tmp_path):
    config = load_config(write(tmp_path, LEAST))
    assert config.train.iterations == 120_000
    assert config == Config.model_validate(config.model_dump())


def test_schema_values_match_the_network():
    """The schema repeats these values because it is loaded without PyTorch."""
    fields = ModelConfig.model_fields
    assert get_args(fields["batch_norm"].annotation) == SSD300_VGG16.batch_norms
    assert get_args(fields["conv4_3_norm"].annotation) == tuple(CONV4_3_NORMS)


@pytest.mark.parametrize(
    "text, word",
    [("true", "backbone"), ("false", "none"), ("yes", "backbone"), ("no", "none"), ("none", "none"), ("'all'", "all")],
)
def test_boolean_batch_norm_of_old_files(text, word, tmp_path):
    path = write(tmp_path, f"{LEAST}model: {{pretrained: none, batch_norm: {text}}}\n")
    assert load_config(path).model.batch_norm == word
    other = write(tmp_path, LEAST)
    assert load_config(other, ["model.pretrained=none", f"model.batch_norm={text}"]).model.batch_norm == word


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_states_what_differs_and_why(path, tmp_path):
    values = yaml.safe_load(path.read_text())
    config, default = load_config(path), load_config(write(tmp_path, LEAST))
    assert config.output_dir == f"runs/{path.stem}"
    for section, entries in values.items():
        for key in entries if isinstance(entries, dict) else ():
            if f"{section}.{key}" in ("data.train", "data.val"):
                continue
            assert getattr(getattr(config, section), key) != getattr(getattr(default, section), key), f"{section}.{key}"
    of_data = r"  (classes|train|val):|    - \{path: "
    for line in path.read_text().splitlines():
        if line.startswith(" ") and not re.match(of_data, line):
            assert re.search(r"\S  +# \S", line), f"{line}: no reason"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_ignore_blank_lines_and_comments(path, tmp_path):
    """Users may add blank lines and comments."""
    (tmp_path / "c.yaml").write_text(path.read_text().replace("\n", "\n\n# mine\n"))
    assert load_config(tmp_path / "c.yaml") == load_config(path)


@pytest.mark.parametrize("fold", ["0/3", "4/3", "1/1", "2", "a/b", "1/3/5", "-1/3", ""])
def test_a_fold_is_a_number_of_several(tmp_path, fold):
    with pytest.raises(ConfigError, match=rf"data.fold: expected N/K with N from 1 to K and K at least 2, .*, got '{fold}'"):
        load_config(write(tmp_path, LEAST), [f"data.fold='{fold}'"])
    assert load_config(write(tmp_path, LEAST), ["data.fold=3/3"]).data.fold == "3/3"
