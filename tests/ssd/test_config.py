from pathlib import Path

import pytest
import yaml

from ssd.config import VOC_CLASSES, Config, ConfigError, known_keys, load_config
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


def test_numbers_as_people_write_them(tmp_path):
    config = load_config(write(tmp_path, LEAST + "train: {lr: 1e-3, weight_decay: 5E-04, warmup: 10}\n"), ["loss.neg_pos=2"])
    assert config.train.lr == 1e-3
    assert config.train.weight_decay == 5e-4
    assert config.loss.neg_pos == 2


def test_overrides(tmp_path):
    path = write(tmp_path, LEAST + "train: {iterations: 100}\n")
    config = load_config(path, ["train.lr=5e-4", "data.classes=[cat,dog]", "data.train.0.split=x", "eval.metric=voc10"])
    assert config.train.lr == 5e-4
    assert config.data.class_names == ("cat", "dog")
    assert config.data.train[0].split == "x"
    assert load_config(path, ["train.epochs=3"]).train.iterations is None
    assert load_config(path, ["train.ema=null"]).train.ema is None


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (LEAST, ["train.warmpu=3"], "train.warmpu: unknown key (value 3); did you mean train.warmup?"),
        (LEAST, ["lr=3"], "lr: unknown key (value 3); did you mean train.lr?"),
        (LEAST, ["train.batch_size=big"], "train.batch_size: expected 'auto' or an integer, got 'big'"),
        (LEAST, ["train.batch_size=0"], "train.batch_size: expected 'auto' or greater than 0, got 0"),
        (LEAST, ["train.batch_size=8.5"], "train.batch_size: expected 'auto' or an integer, got 8.5"),
        (LEAST, ["train.lr=-1"], "train.lr: expected greater than 0, got -1"),
        (LEAST, ["train.lr=.nan"], "train.lr: expected a finite number, got nan"),
        (LEAST, ["train.lr=true"], "train.lr: expected a number, got True"),
        (LEAST, ["augment.crop=1"], "augment.crop: expected true or false, got 1"),
        (LEAST, ["train.optimizer=adam"], "train.optimizer: expected 'sgd' or 'adamw', got 'adam'"),
        (LEAST, ["device=gpu"], "device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        (LEAST, ["data.classes=car"], "data.classes: expected 'voc' or a list, got 'car'"),
        (LEAST, ["data.classes=[a,a]"], "data.classes: class 'a' is listed 2 times"),
        (LEAST, ["data.classes=[background]"], "'background' is added by the code"),
        (LEAST, ["data.classes=[]"], "data.classes: expected"),
        (LEAST, ["data.workers=some"], "data.workers: expected 'auto' or an integer, got 'some'"),
        (LEAST, ["data.train=[]"], "data.train: expected at least 1 item"),
        (LEAST, ["data.train.0.splt=a"], "data.train.0.splt: unknown key (value 'a'); did you mean data.train.split?"),
        (LEAST, ["data.train.4.split=a"], "expected a list position 0 to 0, got '4'"),
        (LEAST + "seed: 3", ["seed.x=1"], "seed is a single value and has no entries below it"),
        (LEAST, ["train.lr"], "expected key=value"),
        (LEAST, ["train.lr=[1"], "the value is not valid YAML"),
        (LEAST, ["model.width=0.5"], "has no pretrained weights; set pretrained: none"),
        (LEAST, ["train.batch_size=8", "train.accumulate=3"], "batch_size 8 is not a multiple of accumulate 3"),
        (LEAST, ["train.batch_size=auto", "train.accumulate=2"], "batch_size auto chooses accumulate as well"),
        (LEAST, ["train.milestones=[3,2]"], "milestones [3, 2] must rise"),
        (LEAST, ["checkpoint=5"], "checkpoint: expected a mapping"),
        (LEAST + "train: {iterations: 3, epochs: 4}", [], "both set; one must be null"),
        (LEAST + "train: {lr: 1}\ntrain: {lr: 2}", [], "key 'train' stands twice, again in line 3"),
        ("seed: 1", [], "data: is missing and has no default"),
        ("data: [", [], "is not valid YAML"),
        ("- a", [], "expected a mapping of keys to values, got list"),
        ("", [], "expected a mapping of keys to values, got NoneType"),
        ("x: !!python/object/apply:os.system [true]", [], "is not valid YAML"),
    ],
)
def test_faults_get_one_clear_line(tmp_path, text, overrides, expected):
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path, text), overrides)
    (line,) = str(error.value).splitlines()
    assert expected in line


def test_every_fault_is_named_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path, LEAST), ["train.lr=x", "loss.neg_pos=y", "eval.metrc=voc07"])
    assert len(str(error.value).splitlines()) == 3


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(tmp_path / "b.yaml")
