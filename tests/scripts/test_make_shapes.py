import pytest

from scripts.make_shapes import main


def test_draws_the_same_files_again(tmp_path, capsys):
    for folder in ("one", "two"):
        assert main([str(tmp_path / folder), "--train", "3", "--val", "2", "--seed", "5"]) == 0
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(names) == 5 + 5 + 3
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert "3 + 2 images" in capsys.readouterr().out


def test_impossible_requests(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--train", "0"])
    assert "at least 1" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    assert main([str(tmp_path / "file"), "--train", "1", "--val", "1"]) == 1
    assert f"error: {tmp_path / 'file'}: " in capsys.readouterr().err
