import json

import pytest
import torch

from fastgen.runs import checkpoint


@pytest.fixture
def saved(tmp_path):
    tensors = {
        "model": {"a": torch.randn(3, 4), "b": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)},
        "rng": {"cpu": torch.arange(5, dtype=torch.uint8)},
    }
    checkpoint.save(tmp_path / "00000007", tensors, {"config": {"x": [1, 2]}})
    return tmp_path / "00000007", tensors


def test_what_was_saved_comes_back(saved):
    folder, tensors = saved
    for name, values in tensors.items():
        loaded = checkpoint.load_tensors(folder, name)
        assert loaded.keys() == values.keys()
        assert all(torch.equal(loaded[k], values[k]) for k in values)
    assert checkpoint.load_document(folder, "config") == {"x": [1, 2]}


def test_nothing_else_is_left(saved):
    folder, _ = saved
    assert [p.name for p in folder.parent.iterdir()] == ["00000007"]
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "manifest.json", "model.safetensors", "rng.safetensors"]


def test_steps_are_the_finished_checkpoints(saved):
    parent = saved[0].parent
    (parent / ".00000009.tmp").mkdir()
    (parent / "00000011").mkdir()
    (parent / "notes").mkdir()
    assert checkpoint.steps(parent) == [7, 11]
    assert checkpoint.at_step(parent, 7) == saved[0]


@pytest.mark.parametrize("position", [0, 100, -1])
def test_a_flipped_byte_is_found(saved, position):
    file = saved[0] / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors: expected sha256 .*: the file is corrupt"):
        checkpoint.load_tensors(saved[0], "model")
    assert checkpoint.load_tensors(saved[0], "rng")


def test_a_truncated_file_is_found(saved):
    file = saved[0] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="corrupt"):
        checkpoint.load_tensors(saved[0], "model")


@pytest.mark.parametrize("missing", ["model.safetensors", "manifest.json"])
def test_a_missing_file_is_found(saved, missing):
    (saved[0] / missing).unlink()
    with pytest.raises(ValueError, match="expected a whole checkpoint"):
        checkpoint.load_tensors(saved[0], "model")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256": 3}'])
def test_a_broken_manifest_is_found(saved, text):
    (saved[0] / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="manifest"):
        checkpoint.load_tensors(saved[0], "model")


def test_a_file_that_is_no_safetensors_is_named(saved):
    folder = saved[0]
    (folder / "model.safetensors").write_bytes(b"pickle")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["model.safetensors"] = checkpoint._sha256(folder / "model.safetensors")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="expected a safetensors file"):
        checkpoint.load_tensors(folder, "model")


def test_a_crash_while_writing_leaves_nothing_behind_that_counts(tmp_path, monkeypatch):
    def crash(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "_flush", crash)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path / "00000001", {"model": {"a": torch.ones(1)}}, {})
    assert checkpoint.steps(tmp_path) == []
    monkeypatch.undo()
    checkpoint.save(tmp_path / "00000001", {"model": {"a": torch.ones(1)}}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["00000001"]
