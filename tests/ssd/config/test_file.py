"""Loading a configuration: YAML notations, overrides and error messages."""

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssd.config.entries import child, known_keys, top_entry
from ssd.config.file import load_config, parse_config
from ssd.config.schema import Config, ConfigError, TilesConfig
from ssd.config.yaml import ESCAPED, dump_yaml

LEAST = "data: {train: [{path: a}], val: [{path: b}]}\n"
# Class names that YAML 1.1 or 1.2 does not read as text unless they are quoted.
ODD_NAMES = [
    "no", "Yes", "on", "true", "null", "~", "1e3", "1E-3", "007", "0o17", "0x1F", "1.10", "1_000", "1:30", ".5", "5.", "-1",
    "+2", ".inf", ".nan", "2020-01-01", "=", "<<", "1e400", "9" * 5000,
]  # fmt: skip
NEED_QUOTES = [
    "a: b", "a:", "- a", "-", "#x", "x #y", "'", '"', "a, b", "[x]", "{", "}", "*a", "&a", "!t", "%x", "@x", "`x", "? x", "|",
    ">", " lead", "trail ", "tab\tx", "two\nlines", "\u2028", "\ufeff", "\x7f", "US$5_$x^", "Äpfel", "猫", "🐈", "\\", "---",
    "...",
]  # fmt: skip


def write(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    return path


def error_lines(path: Path, overrides: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    return str(error.value).splitlines()


def test_number_notations(tmp_path):
    config = load_config(write(tmp_path, LEAST + "train: {lr: 1e-3, weight_decay: 5E-04, warmup: 010}\n"), ["loss.neg_pos=2"])
    assert config.train.lr == 1e-3
    assert config.train.weight_decay == 5e-4
    assert config.train.warmup == 10  # not octal
    assert config.loss.neg_pos == 2
    path = write(tmp_path, LEAST + "train: {iterations: 120_000}\neval: {score_thresh: .5}\n")
    assert load_config(path, ["train.clip_grad_norm=10."]).train.clip_grad_norm == 10
    assert load_config(path).train.iterations == 120_000
    assert load_config(path).eval.score_thresh == 0.5
    assert "got '1:30'" in error_lines(path, ["train.max_hours=1:30"])[0]  # not 90


def test_custom_dboxes(tmp_path):
    sizes, ratios = "sizes: [10, 20, 40, 80, 160, 240, 300]", "ratios: [[4], [2, 5], [2, 3], [2, 3], [2], [1.5]]"
    path = write(tmp_path, LEAST + f"model:\n  dboxes:\n    {sizes}\n    {ratios}\n")
    dboxes = load_config(path).model.dboxes
    assert not isinstance(dboxes, str)
    assert (dboxes.sizes[1], dboxes.ratios[1]) == (20, (2, 5))
    assert parse_config(load_config(path).model_dump(mode="json")) == load_config(path)
    assert load_config(path, ["model.dboxes=coco"]).model.dboxes == "coco"
    for override, message in (
        ("model.dboxes.sizes=[10, 20]", "model.dboxes: expected 7 sizes, each larger than the one before, got [10.0, 20.0]"),
        ("model.dboxes.sizes=[20, 10, 40, 80, 160, 240, 300]", "model.dboxes: expected 7 sizes, each larger than the one "),
        ("model.dboxes.ratios=[[2]]", "model.dboxes: expected 6 lists of 1, 2, 2, 2, 1, 1 ratios, got lists of 1"),
        ("model.dboxes.ratio=3", "model.dboxes.ratio: unknown key (value 3); did you mean model.dboxes.ratios?"),
        ("model.dboxes.sizes=10", "model.dboxes.sizes: expected a list of one or more, each a number ≥ 1 and ≤ 1024, got 10"),
        ("model.dboxes.sizes=[10, 20, 40, 80, 160, 240, 601]", "model.dboxes: expected sizes up to 600, got [10.0, "),
        ("model.dboxes=small", "model.dboxes: expected 'voc', 'coco' or a mapping of keys to values, got 'small'"),
        ("model.dboxes={sizes: [1]}", "model.dboxes.ratios: is missing and has no default"),
    ):
        (line,) = error_lines(path, [override])
        assert line.startswith(f"{path}: {message}")


def test_boolean_notations(tmp_path):
    path = write(tmp_path, LEAST + "augment: {crop: no, expand: Off, mirror: on, photometric: True}\n")
    augment = load_config(path).augment
    assert (augment.crop, augment.expand, augment.mirror, augment.photometric) == (False, False, True, True)


def test_unquoted_class_names_stay_text(tmp_path):
    in_line = write(tmp_path, f"data: {{classes: [{', '.join(ODD_NAMES)}], train: [{{path: a}}], val: [{{path: b}}]}}\n")
    assert load_config(in_line).data.class_names == tuple(ODD_NAMES)
    lines = "".join(f"  - {name}\n" for name in ODD_NAMES)
    path = write(tmp_path, f"data:\n  train: [{{path: a}}]\n  val: [{{path: b}}]\n  classes:\n{lines}")
    assert load_config(path).data.classes == tuple(ODD_NAMES)
    config = load_config(write(tmp_path, LEAST), [f"data.classes=[{','.join(ODD_NAMES)}]"])
    assert config.data.class_names == tuple(ODD_NAMES)


def test_dump_round_trip(tmp_path):
    names = [*ODD_NAMES, *NEED_QUOTES]
    data = {"classes": names, "root": "007", "train": [{"path": "no", "split": "2007"}], "val": [{"path": "~"}]}
    values = {"output_dir": "1e3", "data": data}
    config = parse_config(values)
    assert load_config(write(tmp_path, dump_yaml(config.model_dump(mode="json")))) == config
    assert load_config(write(tmp_path, dump_yaml(values, in_line=True))) == config
    # Quoted, so that any YAML parser reads text.
    for name in ODD_NAMES:
        assert dump_yaml([name], in_line=True) == f"['{name}']"


def test_numeric_paths_and_names_stay_text(tmp_path):
    text = "output_dir: 2024-05-01\ndata: {root: 1e3, train: [{path: 2007, split: 007}], val: [{path: 1.10}]}\n"
    config = load_config(write(tmp_path, text), ["data.val.0.split=2012"])
    assert (config.output_dir, config.data.root) == ("2024-05-01", "1e3")
    assert (config.data.train[0].path, config.data.train[0].split) == ("2007", "007")
    assert (config.data.val[0].path, config.data.val[0].split) == ("1.10", "2012")


@pytest.mark.parametrize("name", ["/data/set #2", "[a] {b", "a: b", "*x", "@x", "C:\\x", "- x", "%TEMP%", "a, b"])
def test_path_overrides_are_literal(tmp_path, name):
    path = write(tmp_path, LEAST)
    assert load_config(path, [f"data.root={name}"]).data.root == name
    assert load_config(path, [f"data.root='{name}'"]).data.root == name
    assert load_config(path, [f"model.init_from={name}"]).model.init_from == name


def test_paths_expand_home_and_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DISK", "/mnt/disk")
    text = "output_dir: ~/runs/a\nmodel: {init_from: ~/b}\n"
    text += "data: {root: $DISK/x, train: [{path: '${DISK}/a'}], val: [{path: a$5}]}\n"
    config = load_config(write(tmp_path, text))
    assert (config.output_dir, config.data.root, config.model.init_from) == ("/home/me/runs/a", "/mnt/disk/x", "/home/me/b")
    assert (config.data.train[0].path, config.data.val[0].path) == ("/mnt/disk/a", "a$5")
    assert load_config(write(tmp_path, text), ["data.root=~/c"]).data.root == "/home/me/c"


def test_windows_paths(tmp_path):
    for text in (r"'C:\new'", r"C:\new", r'"C:\\new"'):
        assert load_config(write(tmp_path, f"{LEAST}output_dir: {text}\n")).output_dir == r"C:\new"
    assert load_config(write(tmp_path, LEAST + r'output_dir: "caf\u00e9/\x41"')).output_dir == "café/A"


def test_overrides(tmp_path):
    path = write(tmp_path, LEAST + "train: {iterations: 100}\nmodel: {init_from: x}\n")
    config = load_config(path, ["train.lr=5e-4", "data.classes=[cat,dog]", "data.train.0.split=x", "eval.metric=voc10"])
    assert config.train.lr == 5e-4
    assert config.data.class_names == ("cat", "dog")
    assert config.data.train[0].split == "x"
    assert load_config(path, ["train.epochs=3"]).train.iterations is None
    assert load_config(path, ["train.ema=null"]).train.ema is None
    assert load_config(path, ["model.init_from=null"]).model.init_from is None
    assert load_config(path, ["data.train=[{path: 7, split: 08}]"]).data.train[0].split == "08"


def test_a_section_with_all_entries_commented_out_has_defaults(tmp_path):
    assert load_config(write(tmp_path, LEAST + "train:\n  # lr: 1\nmodel: ~\n")) == load_config(write(tmp_path, LEAST))


def test_nullable_section(tmp_path):
    data = LEAST.strip()[:-1]
    for text in ("{}", "{size: 600}", "{overlap: 0.2, keep: 0.5, background: 0.1}"):
        assert load_config(write(tmp_path, f"{data}, tiles: {text}}}")).data.tiles == TilesConfig()
    assert load_config(write(tmp_path, LEAST), ["data.tiles.keep=1"]).data.tiles == TilesConfig(keep=1)
    assert load_config(write(tmp_path, f"{data}, tiles: {{size: 99}}}}"), ["data.tiles=null"]).data.tiles is None
    commented = "data:\n  train: [{path: a}]\n  val: [{path: b}]\n  tiles:\n    # size: 99\n"
    assert load_config(write(tmp_path, commented)).data.tiles == TilesConfig()
    assert load_config(write(tmp_path, commented.replace("tiles:", "tiles: null"))).data.tiles is None


def test_bom_crlf_and_document_markers(tmp_path):
    expected = load_config(write(tmp_path, LEAST + "seed: 3\n"))
    assert load_config(write(tmp_path, "\ufeff" + LEAST + "seed: 3")) == expected
    assert load_config(write(tmp_path, LEAST.replace("\n", "\r\n") + "seed: 3\r\n")) == expected
    assert load_config(write(tmp_path, "%YAML 1.2\n---\n" + LEAST + "seed: 3\n...\n")) == expected


def test_anchors_and_merges(tmp_path):
    text = "data: {train: &a [{path: &p a}], val: *a}\noutput_dir: *p\ncheckpoint: &e {every: 7}\neval: {<<: *e, top_k: 3}\n"
    config = load_config(write(tmp_path, text))
    assert (config.data.val[0].path, config.output_dir) == ("a", "a")
    assert (config.eval.every, config.eval.top_k) == (7, 3)
    two = LEAST + "checkpoint: &a {every: 7}\nloss: &b {neg_pos: 2}\neval: {<<: [*a, {every: 8, top_k: 4}], top_k: 3}\n"
    assert load_config(write(tmp_path, two)).eval.model_dump().items() >= {"every": 7, "top_k": 3}.items()
    one = write(tmp_path, "seed: &a 7\noutput_dir: *a\n" + LEAST)  # one scalar, as a number and as a name
    assert (load_config(one).seed, load_config(one).output_dir) == (7, "7")


@pytest.mark.parametrize(
    "link", ["[*{0}, *{0}, *{0}, *{0}, *{0}, *{0}, *{0}, *{0}, *{0}]", "{{<<: [*{0}, *{0}, *{0}, *{0}, *{0}, *{0}]}}"]
)
def test_exponential_aliases_are_rejected_quickly(tmp_path, link):
    lines = ["a0: &a0 {x: 1}", *(f"a{i + 1}: &a{i + 1} {link.format(f'a{i}')}" for i in range(30))]
    start = time.monotonic()
    (line,) = error_lines(write(tmp_path, LEAST + "\n".join(lines)), [])
    assert "more than 100,000 values" in line
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (LEAST, ["train.warmpu=3"], "train.warmpu: unknown key (value 3); did you mean train.warmup?"),
        (LEAST, ["lr=3"], "lr: unknown key (value 3); did you mean train.lr?"),
        (LEAST, ["batch_size=3"], "batch_size: unknown key (value 3); did you mean train.batch_size?"),
        (LEAST, ["train.batch=3"], "train.batch: unknown key (value 3); did you mean train.batch_size?"),
        (LEAST, ["imgsz=640"], "imgsz: unknown key (value 640); the input size belongs to model.architecture (ssd300: 300"),
        (LEAST, ["data.root=$NOT_SET/x"], "data.root: $NOT_SET in '$NOT_SET/x' is not set; set this environment variable"),
        (LEAST, ["data.train.0.path=${NOT_SET}"], "data.train.0.path: ${NOT_SET} in '${NOT_SET}' is not set"),
        (LEAST, ["output_dir=~no-such-user/x"], "output_dir: '~no-such-user/x' names the home folder of an unknown user"),
        (LEAST + 'output_dir: "C:\\new"', [], f"is not valid YAML: {ESCAPED} (line 2, column 13)"),
        (LEAST + 'output_dir: "C:\\Photos\\new"', [], ESCAPED),
        (LEAST + 'output_dir: "C:\\data"', [], f"unknown escape character 'd' (line 2, column 17); {ESCAPED}"),
        (LEAST + 'output_dir: "C:\\users"', [], ESCAPED),
        (LEAST + "train: {learning-rate: 3}", [], "train.learning-rate: unknown key (value 3); did you mean train.lr?"),
        (LEAST + "train: {int: 3}", [], "train.int: unknown key (value 3)"),
        (LEAST + "tuple: {str: 3}", [], "tuple: unknown key (value {'str': 3})"),
        (LEAST + "train.lr: 3", [], "train.lr: unknown key (value 3); in a file, put lr under train:"),
        (LEAST + "1: 3", [], "1: unknown key (value 3)"),
        (LEAST + "no: 3", [], "no: unknown key (value 3)"),
        (LEAST + '"a\\nb": 3', [], "'a\\nb': unknown key (value 3)"),
        (LEAST + "? [a]\n: 3", [], "a key must be a name, not a list or a mapping (line 2, column 3)"),
        (LEAST, ["data.tiles=600"], "data.tiles: expected a mapping of keys to values or null, got 600"),
        (LEAST, ["data.tiles.size=31"], "data.tiles.size: expected an integer ≥ 32 and ≤ 65536, got 31"),
        (LEAST, ["data.tiles.size=600.5"], "data.tiles.size: expected an integer ≥ 32 and ≤ 65536, got 600.5"),
        (LEAST, ["data.tiles.overlap=0.9"], "data.tiles.overlap: expected a number ≥ 0 and ≤ 0.8, got 0.9"),
        (LEAST, ["data.tiles.keep=0"], "data.tiles.keep: expected a number > 0 and ≤ 1, got 0"),
        (LEAST, ["data.tiles.background=all"], "data.tiles.background: expected a number ≥ 0 and ≤ 1, got 'all'"),
        (LEAST, ["data.tiles.sise=600"], "data.tiles.sise: unknown key (value 600); did you mean data.tiles.size?"),
        (LEAST, ["train.batch_size=big"], "train.batch_size: expected 'auto' or an integer > 0, got 'big'"),
        (LEAST, ["train.batch_size=0"], "train.batch_size: expected 'auto' or an integer > 0, got 0"),
        (LEAST, ["train.batch_size=8.5"], "train.batch_size: expected 'auto' or an integer > 0, got 8.5"),
        (LEAST, ["train.lr=-1"], "train.lr: expected a number > 0, got -1"),
        (LEAST, ["train.lr=.nan"], "train.lr: expected a number > 0, got nan"),
        (LEAST, ["train.lr=1e400"], "train.lr: expected a number > 0, got inf"),
        (LEAST, ["train.lr=true"], "train.lr: expected a number > 0, got true"),
        (LEAST, ["train.lr="], "train.lr: expected a number > 0, got null"),
        (LEAST, ["model.width=5"], "model.width: expected a number > 0 and ≤ 4, got 5"),
        (LEAST, [f"seed={'9' * 30}"], "seed: expected an integer ≥ 0 and < 2^63, got 9999"),
        (LEAST, [f"seed={'9' * 9999}"], "seed: expected an integer ≥ 0 and < 2^63, got '9999"),
        (LEAST, ["augment.crop=1"], "augment.crop: expected true or false, got 1"),
        (LEAST, ["train.optimizer=adam"], "train.optimizer: expected 'sgd' or 'adamw', got 'adam'"),
        (LEAST, ["device=gpu"], "device: expected 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps', got 'gpu'"),
        (LEAST, ["data.format=csv"], "data.format: expected 'voc', 'coco', 'yolo' or null, got 'csv'"),
        (LEAST, ["data.classes=car"], "data.classes: expected 'voc' or a list of one or more, each text, got 'car'"),
        (LEAST, ["data.classes=[a,a]"], "data.classes: class 'a' is listed 2 times"),
        (LEAST, ["data.classes=[background]"], "'background' is added automatically"),
        (LEAST, ["data.classes=[]"], "data.classes: expected 'voc' or a list of one or more, each text, got []"),
        (LEAST, ["data.classes=[cat,'']"], "data.classes.1: expected text, got ''"),
        (LEAST, ["data.classes=[{a: b}]"], "data.classes.0: expected text, got {'a': 'b'}"),
        (LEAST, ["data.workers=some"], "data.workers: expected 'auto' or an integer ≥ 0, got 'some'"),
        (LEAST, ["data.train=[]"], "data.train: expected a list of one or more, each a mapping of keys to values, got []"),
        (LEAST, ["data.train=[x]"], "data.train.0: expected a mapping of keys to values, got 'x'"),
        (LEAST, ["data.train.0.splt=a"], "data.train.0.splt: unknown key (value 'a'); did you mean data.train.split?"),
        (LEAST, ["data.train.4.split=a"], "expected a list position 0 to 0, got '4'"),
        (LEAST, ["data.train.².split=a"], "expected a list position 0 to 0, got '²'"),
        (LEAST, [f"data.train.{'0' * 9999}.split=a"], "expected a list position 0 to 0, got '000"),
        (LEAST + "seed: 3", ["seed.x=1"], "seed is a single value and has no entries below it"),
        (LEAST, ["train.lr"], "expected key=value"),
        (LEAST, ["train.lr=[1"], "the value is not valid YAML"),
        (LEAST, ["output_dir=no"], "output_dir: expected text, got false; to use it as text, put it in quotes"),
        (LEAST + "model: {pretrained: null}", [], "model.pretrained: expected text, got null; to use it as text"),
        (LEAST, ["model.width=0.5"], "pretrained: imagenet has no weights of width 0.5; set width: 1.0, or pretrained: none"),
        (LEAST, ["model.pretrained=slim"], "model: pretrained: slim needs width: 0.25"),
        (LEAST, ["model.pretrained=slim", "model.width=0.25"], "slim needs width: 0.25, batch_norm: backbone"),
        (LEAST, ["model.pretrained=coco", "model.batch_norm=all"], "set batch_norm: none, or pretrained: imagenet"),
        (LEAST, ["model.pretrained=coco", "model.conv4_3_norm=none"], "coco was trained with conv4_3_norm: l2; set that"),
        (LEAST, ["model.batch_norm=1"], "model.batch_norm: expected 'none', 'backbone' or 'all', got 1"),
        (LEAST, ["train.batch_size=8", "train.accumulate=3"], "train: batch_size 8 is not a multiple of accumulate 3"),
        (LEAST, ["train.batch_size=auto", "train.accumulate=2"], "batch_size: auto chooses accumulate too"),
        (LEAST, ["train.milestones=[3,2]"], "milestones [3, 2] must be ascending"),
        (LEAST, ["train.milestones=[3,x]"], "train.milestones.1: expected an integer > 0, got 'x'"),
        (LEAST, ["checkpoint=5"], "checkpoint: expected a mapping of keys to values, got 5"),
        (LEAST + "train: {iterations: 3, epochs: 4}", [], "both set; one must be null"),
        (LEAST + "train: {lr: 1}\ntrain: {lr: 2}", [], "duplicate key 'train' (line 3, column 1)"),
        (LEAST + "1: 1\n'1': 2", [], "duplicate key '1' (line 3, column 1)"),
        ("seed: 1", [], "data: is missing and has no default"),
        ("data: [", [], "is not valid YAML"),
        ("data:\n\ttrain: 1", [], "indent by spaces, not by tabs"),
        ("- a", [], "expected a mapping of keys to values, got ['a']"),
        ("", [], "expected a mapping of keys to values, got an empty file"),
        ("# only a comment\n", [], "expected a mapping of keys to values, got an empty file"),
        (LEAST + "---\nseed: 1", [], "is not valid YAML"),
        (LEAST + "seed: 1\x00", [], "is not valid YAML"),
        (LEAST + "seed: &a [*a]", [], "an alias refers to a node that contains it (line 2"),
        (LEAST + "seed: &a {<<: *a}", [], "an alias refers to a node that contains it (line 2"),
        (LEAST + "seed: {<<: 3}", [], "<<: expected a mapping or a list of mappings (line 2"),
        (LEAST + "seed: *a", [], "is not valid YAML"),
        (LEAST + "seed: " + "[" * 500, [], "is not valid YAML: nested too deep"),
        (LEAST + "seed: !!set {1}", [], "the tag tag:yaml.org,2002:set is not supported (line 2, column 7)"),
        (LEAST + "seed: !!binary aGk=", [], "the tag tag:yaml.org,2002:binary is not supported"),
        (LEAST + "seed: !!int x", [], "seed: expected an integer"),
        (LEAST + "augment: {crop: !!bool maybe}", [], "augment.crop: expected true or false, got 'maybe'"),
        ("x: !!python/object/apply:os.system [true]", [], "is not valid YAML"),
    ],
)  # fmt: skip
def test_one_line_per_error(tmp_path, text, overrides, expected):
    (line,) = error_lines(write(tmp_path, text), overrides)
    assert expected in line


WRONG: list[Any] = [
    None, True, False, "word", "", "a\udc80", "1", -1, 0, 1, 2**70, 10**400, 1.5, -0.5, float("nan"), float("inf"), [], [None],
    ["x", 3], [[]], [{}], [2, 1], ["a", "a"], ["background"], {}, {"x": 1}, {1: 2}, b"x", (1,), [{"path": 3}], [{"pth": "a"}],
    [{"path": "a", "split": ""}],
]  # fmt: skip
SAID = ("expected ", "unknown key (value ", "is missing and has no default", "class 'a' is listed", "'background' is added")


def test_no_message_of_pydantic_is_shown():
    """Any wrong value for any key gives a line that names the key, in our own words."""
    places = [tuple(key.split(".")) for key in known_keys()]
    places += [(*place, "nonsense") for place in places]
    places += [("nonsense",), ("data", "train", 0), ("data", "train", 0, "path"), ("data", "classes", 0)]
    refused: set[tuple[str | int, ...]] = set()
    for place, wrong in itertools.product(places, WRONG):
        values: Any = {"data": {"classes": ["k"], "train": [{"path": "a"}], "val": [{"path": "b"}]}}
        node = values
        for part in place[:-1]:
            if isinstance(node, list):
                part = 0 if isinstance(part, str) and not isinstance(node[0], dict) else part
            try:
                node = node.setdefault(part, {}) if isinstance(node, dict) else node[part]
            except (TypeError, IndexError):
                node = None
            if not isinstance(node, dict | list):
                break
        else:
            try:
                node[place[-1]] = wrong
            except (TypeError, IndexError):
                continue
            try:
                parse_config(values, "f")
            except ConfigError as error:
                refused.add(place)
                for line in str(error).splitlines():
                    assert line.startswith("f: "), line
                    _, name, text = line.split(": ", 2)
                    assert name.replace("'", "").startswith(str(place[0])), line
                    assert text.startswith(SAID) or name in ("model", "train"), line
                    for phrase in ("Input should", "Value error", "valid", "type=", "validat", "function", "literal["):
                        assert phrase not in line, line
    required = {key for key in known_keys() if not key.startswith(("data.train.", "data.val."))}
    assert required <= {".".join(map(str, place)) for place in refused}


def test_every_key_has_a_schema_entry():
    for key in known_keys():
        entry: Any = top_entry()
        for part in key.split("."):
            entry = child(entry, part) or child(child(entry, 0), part)
        assert entry, key


def test_plain_values_are_validated(tmp_path):
    with pytest.raises(ConfigError) as error:
        parse_config(None, "run")
    assert str(error.value) == "run: expected a mapping of keys to values, got null"
    config = load_config(write(tmp_path, LEAST))
    assert parse_config(json.loads(config.model_dump_json())) == config
    assert Config.model_validate(yaml.safe_load(dump_yaml(config.model_dump(mode="json")))) == config


def test_all_errors_are_reported_together(tmp_path):
    assert len(error_lines(write(tmp_path, LEAST), ["train.lr=x", "loss.neg_pos=y", "eval.metrc=voc07"])) == 3


def test_many_classes_are_validated_quickly():
    names = [f"class {i}" for i in range(20_000)]
    start = time.monotonic()
    parse_config({"data": {"classes": names, "train": [{"path": "a"}], "val": [{"path": "b"}]}})
    assert time.monotonic() - start < 3


def test_unreadable_files(tmp_path):
    assert "No such file" in error_lines(tmp_path / "none.yaml", [])[0]
    assert "cannot be read" in error_lines(tmp_path, [])[0]
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in error_lines(tmp_path / "b.yaml", [])[0]
