"""What is learned: which arguments, labels by hand and in closed form, default steps."""

from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import NUTS
from scipy.stats import beta
from torch import Tensor
from torch.distributions import constraints

from pyro_ext.checkpoint import CheckpointError
from pyro_ext.inference.pseudocoresets import (
    AutoPseudocoreset,
    ForwardKL,
    MCMCSurrogate,
    ReverseKL,
    Wasserstein,
    forward_kl_loss,
)
from pyro_ext.inference.pseudocoresets.learnable import class_values, column_spreads
from pyro_ext.potential import Potential
from tests.inference.pseudocoresets.coreset_models import FITS_ARE_SHORT, labeled, logistic, points

pytestmark = [pytest.mark.usefixtures("float64"), FITS_ARE_SHORT]


def test_labels_that_the_model_reshapes_are_fixed() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 2.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y.squeeze(-1))

    x, y = labeled()
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
    x, y = labeled()
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


NUM_ONES, NUM_POINTS = 28, 40


def rate(y: Tensor) -> None:
    """A rate with a conjugate prior."""
    probability = pyro.sample("probability", dist.Beta(2.0, 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(probability), obs=y)


def softmax(x: Tensor, y: Tensor) -> None:
    """Three classes."""
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=x @ weight), obs=y)


def ones() -> Tensor:
    return (torch.arange(NUM_POINTS) < NUM_ONES).double()


def classes() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(90, 2, generator=generator), torch.arange(90) % 3


@pytest.mark.slow
@pytest.mark.parametrize("divergence", [ForwardKL, ReverseKL, Wasserstein])
def test_fraction_of_ones(divergence: Any) -> None:
    """One pseudo point that weighs as much as the data has the posterior of the data."""
    guide = AutoPseudocoreset(
        rate, ones(), size=1, weights="scaled", learnable=["y"], init=lambda n, y: y[-n:], seed=0
    )
    assert guide.pseudodata[0].tolist() == [[pytest.approx(0.9), pytest.approx(0.1)]]
    optimizer = partial(torch.optim.Adam, lr=0.05)
    guide.fit(divergence(), 300, optimizer=optimizer, progress=False)
    fraction = NUM_ONES / NUM_POINTS
    torch.testing.assert_close(
        guide.pseudodata[0], torch.tensor([[1 - fraction, fraction]]), atol=1e-4, rtol=0
    )
    assert 0 <= guide.losses[-1] < 1e-8 < guide.losses[0]


def test_gradient_of_the_forward_divergence() -> None:
    """In the logit of the probability q of one it is n q (1 - q) (m_u - m_x).

    Here m is the mean logit of the rate under a Beta distribution, a difference of digamma
    functions; draws are quantiles of both distributions.
    """
    guide = AutoPseudocoreset(rate, ones(), size=1, weights="scaled", learnable=["y"], seed=0)
    (parameter,) = guide.parameters()
    q = float(guide.pseudodata[0][0, 1])
    shapes = [
        (2.0 + NUM_ONES, 3.0 + NUM_POINTS - NUM_ONES),
        (2.0 + NUM_POINTS * q, 3.0 + NUM_POINTS * (1 - q)),
    ]
    draws = [numbers(*shape) for shape in shapes]
    coreset = guide.coreset()
    at_data, at_own = (guide.posterior.log_likelihood(draw, coreset) for draw in draws)
    (gradient,) = torch.autograd.grad(forward_kl_loss(at_data, at_own), parameter)
    means = [torch.digamma(torch.tensor(a)) - torch.digamma(torch.tensor(b)) for a, b in shapes]
    expected = NUM_POINTS * q * (1 - q) * (means[1] - means[0])
    torch.testing.assert_close(gradient[0, 1], expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(gradient[0, 0], -expected, rtol=1e-3, atol=0)


def numbers(one: float, zero: float, count: int = 20_001) -> Tensor:
    """Logits at the quantiles of a Beta distribution. **Shape:** ``(count, 1)``."""
    levels = (torch.arange(count) + 0.5) / count
    return torch.from_numpy(beta(one, zero).ppf(levels.numpy())).logit()[:, None]


def test_density_by_hand() -> None:
    x, y = labeled()
    guide = AutoPseudocoreset(
        logistic, x, y, size=6, weights="learned", learnable=["x", "y"], seed=0
    )
    assert guide.label_values is not None and guide.label_values.tolist() == [0.0, 1.0]
    guide.fit(ForwardKL(), 5, progress=False)
    inputs, probabilities = guide.pseudodata
    assert inputs.shape == (6, 3) and probabilities.shape == (6, 2) and guide.weights.shape == (6,)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(6))
    weight = torch.tensor([0.3, -0.2, 0.5])
    distribution = dist.Bernoulli(logits=inputs @ weight)
    terms = torch.stack([distribution.log_prob(torch.full((6,), c)) for c in (0.0, 1.0)], 1)
    likelihood = (guide.weights[:, None] * probabilities * terms).sum()
    expected = dist.Normal(torch.zeros(3), 2.0).log_prob(weight).sum() + likelihood
    conditioned = guide.condition()
    trace = pyro.poutine.trace(pyro.condition(conditioned, {"weight": weight})).get_trace()
    torch.testing.assert_close(trace.log_prob_sum(), expected)
    torch.testing.assert_close(Potential(conditioned)({"weight": weight[None]})[0], -expected)
    torch.testing.assert_close(guide.posterior.value(weight, guide.coreset()).detach(), -expected)
    assert guide.coreset().weights.shape == (12,)
    kernel = NUTS(conditioned)
    kernel.setup(0)
    torch.testing.assert_close(kernel.potential_fn({"weight": weight}), -expected)


def test_three_classes() -> None:
    x, y = classes()
    guide = AutoPseudocoreset(softmax, x, y, size=6, weights="scaled", seed=0)
    assert guide.learnable == ("x",) and guide.label_values is None
    guide = AutoPseudocoreset(softmax, x, y, size=6, weights="scaled", learnable=[1, 0], seed=0)
    assert guide.learnable == ("x", "y")
    start = guide.pseudodata[1]
    assert start.argmax(-1).bincount().tolist() == [2, 2, 2]
    torch.testing.assert_close(start.max(-1).values, torch.full((6,), 0.9))
    rows, weights = guide.coreset()
    assert rows[1].dtype == torch.int64 and rows[1].tolist() == [0, 1, 2] * 6
    assert torch.equal(rows[0][::3], rows[0][1::3])
    torch.testing.assert_close(weights.reshape(6, 3).sum(1), torch.full((6,), 15.0))
    divergence = ReverseKL(MCMCSurrogate(num_samples=6))
    guide.fit(divergence, 3, seed=0, progress=False)
    assert not torch.equal(guide.pseudodata[1], start)
    draws = guide.sample_posterior(10, warmup_steps=0, num_chains=2).get_samples()
    assert draws["weight"].shape == (20, 2, 3)


def test_finite_supports() -> None:
    labels = torch.tensor([1, 0, 2])
    values = class_values(dist.Binomial(3, torch.tensor(0.5)).support, labels)
    assert values is not None and values.tolist() == [0, 1, 2, 3]
    columns = class_values(dist.Bernoulli(0.5).support, torch.zeros(4, 1))
    assert columns is not None and columns.tolist() == [[0.0], [1.0]]
    assert class_values(dist.Poisson(1.0).support, labels) is None
    assert class_values(dist.Normal(0.0, 1.0).support, torch.zeros(3)) is None
    assert class_values(dist.Bernoulli(0.5).support, torch.zeros(4, 2)) is None
    assert class_values(None, labels) is None
    several = dist.Binomial(torch.tensor([3.0, 4.0, 5.0]), 0.5).support
    assert class_values(several, labels) is None


def test_files(tmp_path: Path) -> None:
    x, y = labeled()
    make = partial(AutoPseudocoreset, logistic, x, y, size=6, learnable=["x", "y"])
    guide = make(seed=0).fit(ForwardKL(), 3, progress=False)
    guide.save(tmp_path / "coreset.safetensors")
    loaded = make().load(tmp_path / "coreset.safetensors")
    for one, other in zip(guide.pseudodata, loaded.pseudodata, strict=True):
        torch.testing.assert_close(one, other)
    fixed = AutoPseudocoreset(logistic, x, y, size=6, seed=0)
    with pytest.raises(CheckpointError, match="holds no coreset of"):
        fixed.load(tmp_path / "coreset.safetensors")


def test_single_precision() -> None:
    x, y = labeled()

    def single(x: Tensor, y: Tensor) -> None:
        prior = dist.Normal(torch.zeros(3, dtype=x.dtype), torch.ones((), dtype=x.dtype))
        weight = pyro.sample("weight", prior.to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)

    guide = AutoPseudocoreset(single, x.float(), y.float(), size=6, learnable=["x", "y"], seed=0)
    guide.fit(ForwardKL(), 3, progress=False)
    assert {row.dtype for row in guide.pseudodata} == {torch.float32}
    assert {row.dtype for row in guide.coreset().rows} == {torch.float32}


def test_errors() -> None:
    x, y = labeled(20)

    def counts(x: Tensor, y: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Poisson((x @ weight).exp()), obs=y)

    def two(x: Tensor, y: Tensor, z: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)
            pyro.sample("z", dist.Bernoulli(logits=-x @ weight), obs=z)

    with pytest.raises(ValueError, match="learnable names 'y', which holds integers or a discrete"):
        AutoPseudocoreset(counts, x, y, size=4, learnable=["y"])
    with pytest.raises(ValueError, match=r"learnable must name one argument of labels, got \['y"):
        AutoPseudocoreset(two, x, y, 1 - y, size=4, learnable=["y", "z"])
    with pytest.raises(ValueError, match="must start with classes among"):
        AutoPseudocoreset(
            logistic, x, y, size=4, learnable=["y"], init=lambda n, x, y: (x[:n], y[:n] + 0.5)
        )


def in_units(scale: float) -> AutoPseudocoreset:
    """A logistic regression, the first of whose inputs is in other units and far from zero."""
    x, y = labeled()
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


def test_spreads_of_columns() -> None:
    rows = torch.tensor([[-1.0, 5.0, 0.0], [1.0, 5.0, 0.0], [0.0, 5.0, 0.0]])
    assert column_spreads(rows).tolist() == [1.0, 5.0, 1.0]
    assert column_spreads(rows[:1]).tolist() == [1.0, 5.0, 1.0]
    assert column_spreads(torch.zeros(4, 2)).tolist() == [1.0, 1.0]
