import re

from scripts.check_data import main
from tests.helpers.paths import ROOT


def test_counts_sizes_and_coverage(capsys, shared_data):
    assert main([str(ROOT / "configs/bccd.yaml"), f"data.root={shared_data}"]) == 0
    shown = capsys.readouterr().out
    assert "data.train: 292 photos, 3941 objects; 0 photos without objects" in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["RBC", "3348", "0", "280"] in rows
    assert ["all", "3941", "99.8%"] in rows


def test_other_dboxes_cover_other_objects(capsys, shared_data):
    assert main([str(ROOT / "configs/bccd.yaml"), f"data.root={shared_data}", "model.dboxes=voc"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["16", "to", "32", "277", "52.7%"] in rows


def test_shared_photos_are_reported(capsys, shapes_root):
    val = "data.val=[{path: shapes, split: trainval}]"
    train = "data.train=[{path: shapes, split: train}]"
    assert main([str(ROOT / "configs/quickstart.yaml"), f"data.root={shapes_root}", train, val]) == 0
    assert "24 photos are in both data.train and data.val" in capsys.readouterr().out


def test_tiles_show_objects_larger(capsys, shapes_root):
    arguments = [str(ROOT / "configs/quickstart.yaml"), f"data.root={shapes_root}", "data.tiles={size: 150, background: 0}"]
    assert main(arguments) == 0
    _, of_photos, of_tiles = re.split(r"^(?:data\.train|tiles of data\.train).*$", capsys.readouterr().out, flags=re.M)
    least = [int(re.findall(r"^ +(\d+) to \d+ ", text, re.M)[0]) for text in (of_photos, of_tiles)]
    assert least[0] < least[1]
    assert "no faults" in of_tiles
