"""Networks that pages start from."""

import pytest
import torch

from pyro_ext.models.ensembles import base_networks


@pytest.mark.slow
def test_they_are_trained_once_and_then_read(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = base_networks(2, num_epochs=1, progress=False)
    (path,) = (tmp_path / "pyro_ext" / "base_networks").glob("*.safetensors")
    written = path.stat().st_mtime_ns
    torch.manual_seed(1)
    second = base_networks(2, num_epochs=1, progress=False)
    assert path.stat().st_mtime_ns == written
    path.write_bytes(path.read_bytes()[:-9])
    third = base_networks(2, num_epochs=1, progress=False)
    for other in (second, third):
        for network, twin in zip(first.networks, other.networks, strict=True):
            for one, two in zip(network.parameters(), twin.parameters(), strict=True):
                assert torch.equal(one, two)
    outputs = [network(first.test_inputs) for network in first.networks]
    assert not torch.equal(*outputs)
    for output in outputs:
        assert (output.argmax(-1) == first.test_targets).float().mean() > 0.6
    assert len(list((tmp_path / "pyro_ext" / "base_networks").glob("*.safetensors"))) == 1
    rows = torch.cat([first.train_inputs, first.test_inputs]).flatten(1)
    assert len(rows.unique(dim=0)) == 5000 and 0.0 <= rows.min() and rows.max() <= 1.0
