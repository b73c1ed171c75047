"""Arrays cached between runs."""

import numpy as np

from data.dataset.disk_cache import load_arrays, save_arrays


def test_load_returns_what_save_wrote(tmp_path, monkeypatch):
    """Nothing is added: `np.savez` stores a keyword that a NumPy version does not know as an array."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    written = {"a": np.arange(5), "b c": np.zeros((0, 4), np.float32)}
    save_arrays("some", written)
    read = load_arrays("some")
    assert read.keys() == written.keys()
    for name, values in written.items():
        np.testing.assert_array_equal(read[name], values, strict=True)
    (tmp_path / "ssd300/some.npz").write_bytes(b"PK")
    assert load_arrays("some") == load_arrays("none") == {}
