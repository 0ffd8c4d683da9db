"""Files of tensors: whole or not at all, and every change shows."""

import resource

import pytest
import torch

from pyro_ext.checkpoint import CheckpointError
from pyro_ext.checkpoint.files import read_json, read_tensors, write_json, write_tensors

TENSORS = {
    "single": torch.randn(3, 4),
    "double": torch.randn(2, dtype=torch.float64),
    "half": torch.randn(5).bfloat16(),
    "words": torch.tensor([2**40, -1]),
    "flags": torch.tensor([True, False]),
    "scalar": torch.tensor(1.5),
    "empty": torch.zeros(0, 3),
    "strided": torch.randn(4, 6).t()[::2],
}


def test_round_trip(tmp_path):
    path = tmp_path / "a.safetensors"
    digest = write_tensors(path, TENSORS, {"step": 3, "stopped": [None, 2], "x": float("inf")})
    tensors, content, again = read_tensors(path)
    assert digest == again and content == {"step": 3, "stopped": [None, 2], "x": float("inf")}
    assert set(tensors) == set(TENSORS)
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype and torch.equal(tensors[name], value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_digest_depends_on_everything(tmp_path):
    path = tmp_path / "a.safetensors"
    x = torch.arange(6.0)
    digests = {
        write_tensors(path, {"x": x}, {}),
        write_tensors(path, {"x": x}, {"step": 1}),
        write_tensors(path, {"y": x}, {}),
        write_tensors(path, {"x": x.reshape(2, 3)}, {}),
        write_tensors(path, {"x": x.double()}, {}),
        write_tensors(path, {"x": x + 1}, {}),
    }
    assert len(digests) == 6


@pytest.mark.parametrize("point", [20, -1, -30])
def test_a_flipped_byte_is_noticed(tmp_path, point):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.randn(30)}, {"step": 7})
    raw = bytearray(path.read_bytes())
    raw[point] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(CheckpointError, match="a.safetensors"):
        read_tensors(path)


@pytest.mark.parametrize("length", [0, 5, 50, -1])
def test_a_cut_file_is_noticed(tmp_path, length):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.randn(30)}, {})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tensors(path)


def test_a_missing_file_and_one_of_others(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tensors(tmp_path / "none.safetensors")
    (tmp_path / "run.json").write_text("{'step': 1}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(tmp_path / "run.json")
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="wanted an object of JSON, got list"):
        read_json(tmp_path / "run.json")


def test_json_round_trip(tmp_path):
    write_json(tmp_path / "run.json", {"a": [1, None], "b": {"c": 0.1}})
    assert read_json(tmp_path / "run.json") == {"a": [1, None], "b": {"c": 0.1}}


def test_a_full_disk_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.zeros(10)}, {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(CheckpointError, match="cannot be written .*intact"):
            write_tensors(path, {"x": torch.ones(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.equal(read_tensors(path)[0]["x"], torch.zeros(10))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]
