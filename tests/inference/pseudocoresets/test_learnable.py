"""Which arguments are learned: by what the model does with them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ext.inference.pseudocoresets import AutoPseudocoreset, ForwardKL
from tests.inference.pseudocoresets.coreset_models import FITS_ARE_SHORT, labelled, points

pytestmark = [pytest.mark.usefixtures("float64"), FITS_ARE_SHORT]


def test_labels_that_the_model_reshapes_are_fixed() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 2.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y.squeeze(-1))

    x, y = labelled()
    guide = AutoPseudocoreset(model, x, y[:, None], size=10, seed=0)
    assert guide.learnable == ("x",)
    assert float(guide.pseudodata[1].sum()) == 5.0
    learned = AutoPseudocoreset(model, x, y[:, None], size=10, learnable=["x", "y"], seed=0)
    learned.fit(ForwardKL(), 2, progress=False)
    assert learned.pseudodata[1].shape == (10, 2)


def binomial(x: Tensor, total: Tensor, y: Tensor) -> None:
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Binomial(total, logits=x @ weight), obs=y)


def test_arguments_that_may_not_change() -> None:
    """Totals as floating-point numbers are integers all the same, which only the model knows."""
    x, y = labelled()
    total = 3.0 + torch.arange(400) % 4
    with pytest.raises(ValueError, match=r"the argument 'total' cannot be learned.*total_count.*"):
        AutoPseudocoreset(binomial, x, total, y, size=10, seed=0)
    with pytest.raises(ValueError, match=r"such as learnable=\['x'\]"):
        AutoPseudocoreset(binomial, x, total, y, size=10, seed=0)
    guide = AutoPseudocoreset(binomial, x, total, y, size=10, learnable=["x"], seed=0)
    assert len(guide.fit(ForwardKL(), 2, progress=False).losses) == 2


def test_observations_of_a_mixture() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            parts = dist.Categorical(torch.ones(2)), dist.LogNormal(loc, 1.0)
            pyro.sample("x", dist.MixtureSameFamily(*parts), obs=x)

    guide = AutoPseudocoreset(model, points()[:, 0].abs() + 0.1, size=5, seed=0)
    assert guide.learnable == ("x",)
    guide.fit(ForwardKL(), 5, progress=False)
    assert bool((guide.pseudodata[0] > 0).all())


def test_observations_without_a_transform() -> None:
    class Odd(constraints.Constraint):
        def check(self, value: Tensor) -> Tensor:
            return value == value

    class OddNormal(dist.Normal):
        support = Odd()

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", OddNormal(loc, 1.0), obs=x)

    with pytest.raises(ValueError, match="'x' cannot be learned: there is no map"):
        AutoPseudocoreset(model, points()[:, 0], size=5, seed=0)
