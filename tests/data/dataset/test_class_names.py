"""Class names that differ only in spelling."""

from data.dataset.class_names import similar_classes
from scripts import check_data
from tests.helpers.exports import kangaroo


def test_classes_that_differ_only_in_spelling_are_reported(tmp_path, capsys, proposed):
    warnings = similar_classes({"WBC": 350, "wbc": 22, "RBC": 4000, "Platelets": 900, "Platelest": 2, "van1": 500, "van2": 3})
    assert [line.partition(" differ")[0].partition(" are spelled")[0] for line in warnings] == [
        "classes 'WBC' (350 objects) and 'wbc' (22)",
        "classes 'Platelets' (900 objects) and 'Platelest' (2)",
    ]
    kangaroo(tmp_path / "mine")
    path = next(iter(sorted((tmp_path / "mine/annots").iterdir())[5:]))
    path.write_text(path.read_text().replace("<name>cat", "<name>Cat").replace("<name>dog", "<name>DOG"))
    assert "differ only in case" in proposed(tmp_path / "mine")
    assert check_data.main([str(tmp_path / "a.yaml")]) == 0
    assert "differ only in case" in capsys.readouterr().out
