"""Default steps: in units of each column of the data."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ext.inference.pseudocoresets import AutoPseudocoreset, ForwardKL
from pyro_ext.inference.pseudocoresets.learnable import column_spreads
from tests.inference.pseudocoresets.coreset_models import FITS_ARE_SHORT, labelled

pytestmark = [pytest.mark.usefixtures("float64"), FITS_ARE_SHORT]


def in_units(scale: float) -> AutoPseudocoreset:
    """A logistic regression, the first of whose inputs is in other units and far from zero."""
    x, y = labelled()
    x[:, 0] += 2.5
    unit = torch.tensor([scale, 1.0, 1.0])

    def model(x: Tensor, y: Tensor) -> None:
        prior = dist.Normal(torch.zeros(3), 2.0 / unit).to_event(1)
        weight = pyro.sample("weight", prior)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)

    return AutoPseudocoreset(model, x * unit, y, size=10, weights="learned", seed=0)


@pytest.mark.parametrize("scale", [1e-3, 20_000.0])
def test_default_steps_are_in_units_of_each_column(scale: float) -> None:
    guides = [in_units(factor) for factor in (1.0, scale)]
    for guide in guides:
        guide.fit(ForwardKL(), 20, progress=False)
    torch.testing.assert_close(guides[1].losses, guides[0].losses, rtol=1e-5, atol=0)
    plain, scaled = (guide.pseudodata[0] for guide in guides)
    unit = torch.tensor([scale, 1.0, 1.0])
    torch.testing.assert_close(scaled / unit, plain, rtol=1e-5, atol=1e-6)
    moves = (plain - in_units(1.0).pseudodata[0]).abs()
    assert 0.02 < float(moves.max()) < 0.12  # twenty steps of up to 0.005


def test_default_steps_on_incomes() -> None:
    """Steps of a common size for both columns end at once where nothing is finite."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 2, generator=generator)
    y = (torch.rand(2000, generator=generator) < x.sum(-1).sigmoid()).to(x)
    x[:, 0] = 50_000.0 + 20_000.0 * x[:, 0]

    def model(x: Tensor, y: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        intercept = pyro.sample("intercept", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ weight + intercept), obs=y)

    guide = AutoPseudocoreset(model, x, y, size=12, weights="scaled", seed=0)
    guide.fit(ForwardKL(), 60, progress=False)
    assert len(guide.losses) == 60
    assert guide.losses[-1] < 0.05 * guide.losses[0]


def test_spreads_of_columns() -> None:
    rows = torch.tensor([[-1.0, 5.0, 0.0], [1.0, 5.0, 0.0], [0.0, 5.0, 0.0]])
    assert column_spreads(rows).tolist() == [1.0, 5.0, 1.0]
    assert column_spreads(rows[:1]).tolist() == [1.0, 5.0, 1.0]
    assert column_spreads(torch.zeros(4, 2)).tolist() == [1.0, 1.0]
