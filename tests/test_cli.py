"""The command, and the demonstration it runs."""

import json

import pytest
import torch
from typer.testing import CliRunner

from pyro_ext import __version__
from pyro_ext.cli import app
from pyro_ext.tutorials import demo

runner = CliRunner()


def test_help_and_version():
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0 and "demo" in result.output
    assert runner.invoke(app, ["--version"]).output.strip() == __version__
    assert "cycle" in runner.invoke(app, ["demo", "--help"]).output


def test_bad_arguments():
    result = runner.invoke(app, ["demo", "--num-chains", "0"])
    assert result.exit_code == 2 and "num-chains" in result.output


def test_network_broadcasts_over_draws():
    weights = {}
    for layer, shape in enumerate(zip(demo.WIDTHS[:-1], demo.WIDTHS[1:], strict=True)):
        weights[f"weight{layer}"] = torch.randn(2, 3, *shape)
        weights[f"bias{layer}"] = torch.randn(2, 3, shape[1])
    inputs = torch.randn(5, 64)
    outputs = demo.logits(weights, inputs)
    assert outputs.shape == (2, 3, 5, 10)
    one = demo.logits({name: value[1, 2] for name, value in weights.items()}, inputs)
    torch.testing.assert_close(outputs[1, 2], one)


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    output = tmp_path / "demo"
    scores = demo.run(output, num_chains=4, num_draws=12, cycle_length=100)
    printed = capsys.readouterr().out
    assert "r_hat" in printed and "ess_bulk" in printed and "ECE" in printed
    assert scores["posterior_nll"] < scores["mode_nll"], json.dumps(scores)
    for name in ("trace.png", "rank.png", "reliability.png", "posterior.nc"):
        assert (output / name).stat().st_size > 5_000
    import xarray

    with xarray.open_dataset(output / "posterior.nc", group="posterior") as posterior:
        assert posterior["weight0"].shape == (4, 12, 64, 32)
