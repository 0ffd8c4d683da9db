"""Models whose libraries branch or copy in Python are recorded, and rounding is no branch."""

import copy
import math
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import LatentStableReparam, StableReparam
from torch import Tensor, nn

from pyro_ext.potential import Potential, agree_but_for_rounding, outputs_agree
from pyro_ext.potential._graph_passes import recordable


def compare(model: Callable[..., Any], *args: Any, tolerance: float = 1e-4) -> None:
    """A record gives the eager values and gradients, without any warning, for several chains."""
    eager = Potential(model, *args, backend="eager")
    recorded = Potential(model, *args)
    params = eager.init(3, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        actual = recorded.value_and_grad(params)
    expected = eager.value_and_grad(params)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    assert recorded.gradient.backend == "trace"


def stable_noise(x: Tensor, stability: Tensor) -> None:
    """A stability that is given, so that some are at the hole at one; another is latent."""
    latent = pyro.sample("stability", dist.Uniform(torch.tensor(0.5), 2.0))
    scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.0), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Stable(torch.minimum(stability, latent), 0.3, scale), obs=x)


def latent_stable(x: Tensor, stability: Tensor) -> None:
    with pyro.plate("data", len(x)):
        loc = pyro.sample("loc", dist.Stable(stability, 0.3, torch.ones(len(x))))
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "config"),
    [
        pytest.param(stable_noise, {"x": StableReparam()}, marks=pytest.mark.slow),
        (latent_stable, {"loc": StableReparam()}),
        (latent_stable, {"loc": LatentStableReparam()}),
    ],
    ids=["observed", "latent", "latent, in one"],
)
def test_stable_distributions(model: Any, config: Any) -> None:
    """At the hole and away from it."""
    x, stability = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.999, 1.0, 1.6])
    compare(poutine.reparam(model, config), x, stability, tolerance=1e-3)


class Shifted(nn.Module):
    """A linear map, and tensors of all kinds that a copy has to copy."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.register_buffer("offset", torch.tensor([0.5]))
        self.plain = torch.tensor([2.0])
        self.same = self.plain

    def forward(self, x: Tensor) -> Tensor:
        assert self.same is self.plain
        return (self.linear(x) + self.offset) * self.plain


def test_a_module_that_is_copied_inside_the_model() -> None:
    module = Shifted()

    def model(x: Tensor, y: Tensor) -> None:
        own = copy.deepcopy(module)
        for name, parameter in list(own.linear.named_parameters()):
            prior = dist.Normal(torch.zeros_like(parameter), 1.0).to_event(parameter.dim())
            delattr(own.linear, name)
            setattr(own.linear, name, pyro.sample(name, prior))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(own(x)[:, 0], 1.0), obs=y)

    torch.manual_seed(0)
    x, y = torch.randn(5, 2), torch.randn(5)
    compare(model, x, y)
    # A change of what is copied is noticed.
    recorded = Potential(model, x, y)
    params = recorded.init(2, seed=0)
    before = recorded(params)
    module.plain.mul_(3.0)
    after = recorded(params)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, Potential(model, x, y, backend="eager")(params))


def test_only_the_recording_thread_is_told() -> None:
    answers: list[Any] = []

    def ask() -> None:
        answers.append(torch._C._get_tracing_state())

    with recordable():
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        ask()
    ask()
    assert answers == [None, True, None]


# Rounding ----------------------------------------------------------------------------------------


def sparse_regression(x: Tensor, y: Tensor, jump: float = 0.0) -> None:
    """Horseshoe priors on pairwise interactions, integrated out: badly conditioned.

    With a jump, the likelihood has a branch that the recorder cannot see.
    """
    size, number = x.shape[1], len(x)
    sigma = pyro.sample("sigma", dist.HalfNormal(x.new_tensor(2.0)))
    phi = sigma * 3.0 / number**0.5 / (size - 3.0)
    eta = pyro.sample("eta", dist.HalfCauchy(phi))
    square = pyro.sample("square", dist.InverseGamma(x.new_tensor(3.0), 1.0))
    other = pyro.sample("other", dist.InverseGamma(x.new_tensor(3.0), 0.5))
    eta2 = eta.square() * other.sqrt() / square
    local = pyro.sample("local", dist.HalfCauchy(x.new_ones(size)).to_event(1))
    scaled = x * square.sqrt() * local / (square + (eta * local).square()).sqrt()
    inner = scaled @ scaled.mT
    covariance = (
        0.5 * eta2.square() * ((1 + inner).square() - scaled.square() @ scaled.square().mT)
        + (eta.square() - eta2.square()) * inner
        + (1.0 - 0.5 * eta2.square())
        + sigma.square() * torch.eye(number, dtype=x.dtype)
    )
    if jump and sigma.detach().numpy() > 1.5:
        pyro.factor("jump", jump * sigma)
    pyro.sample("y", dist.MultivariateNormal(x.new_zeros(number), covariance), obs=y)


@pytest.mark.slow
@pytest.mark.parametrize("jump", [0.0, 3.0], ids=["rounding", "branch"])
def test_rounding_is_told_from_a_branch(jump: float, subtests: pytest.Subtests) -> None:
    """By a fixed tolerance, both data sets were refused in single precision."""
    for seed, dtype in ((0, torch.float32), (1, torch.float32), (0, torch.float64)):
        generator = torch.Generator().manual_seed(seed)
        x, noise = (torch.randn(*size, generator=generator) for size in ((60, 20), (60,)))
        y = x[:, 0] * x[:, 1] + 2.0 * x[:, 2] + 0.3 * noise
        potential = Potential(sparse_regression, x.to(dtype), y.to(dtype), jump)
        with subtests.test(seed=seed, dtype=dtype), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            potential.gradient.single()
            messages = [str(warning.message) for warning in caught]
            assert (potential.gradient.backend == "trace") == (jump == 0.0), messages
            assert (not messages) == (jump == 0.0), messages


def test_results_agree_up_to_conditioning(subtests: pytest.Subtests) -> None:
    terms = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    terms = terms - terms.mean()
    loose = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 1e-5]])
    cases: dict[str, tuple[Callable[[], Tensor], float, float]] = {
        "a sum near zero": (lambda: terms.sum() + 0.5, 2e-5, 0.1),
        "a difference": (lambda: (1e6 + terms[0]) - 1e6, 0.1, 3.0),
        "a solution": (lambda: torch.linalg.solve(loose, torch.tensor([1.0, 0.0])), 300.0, 3e6),
        "well conditioned": (lambda: (terms.square() + 1.0).log().sum(), 0.1, 30.0),
    }
    for label, (function, rounding, change) in cases.items():
        result = function()
        with subtests.test(label):
            assert agree_but_for_rounding(function, result + rounding, result) is True
            assert agree_but_for_rounding(function, result + change, result) is False
            assert agree_but_for_rounding(function, result, result) is True

    with subtests.test("finite by rounding"):
        matrix = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 1e-7]])

        def factor() -> Tensor:
            factor, info = torch.linalg.cholesky_ex(matrix * (1.0 + 0.0 * terms[0]))
            return torch.where(info > 0, torch.nan, factor.sum())

        result = factor()
        assert agree_but_for_rounding(factor, result + 1.0, result) is None
    with subtests.test("integers"):
        whole = torch.tensor([1, 2])
        assert agree_but_for_rounding(lambda: whole, whole, whole.clone())
        assert agree_but_for_rounding(lambda: whole, whole + 1, whole) is False
    with subtests.test("not finite"):
        numbers = torch.tensor([1.0, torch.inf])
        assert not outputs_agree(torch.tensor([1.0, 1.0]), numbers)
        assert agree_but_for_rounding(lambda: numbers, torch.ones(2), numbers) is False


LENGTHS, SEEN = torch.tensor([3, 5, 2]), torch.tensor([0.3, math.nan, -1.0, math.nan, 2.0])


def walk_of_the_longest(lengths: Tensor, seen: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.0), 1.0))
    state: Any = 0.0
    for t in range(lengths.max()):
        state = pyro.sample(f"state_{t}", dist.Normal(state, scale))
        if (t < lengths).all():
            pyro.sample(f"common_{t}", dist.Normal(state, 1.0), obs=seen[0])


def what_is_seen(lengths: Tensor, seen: Tensor) -> None:
    """Masks, lengths as numbers, and distinct values of data."""
    with pyro.plate("data", len(seen)):
        loc = pyro.sample("loc", dist.Normal(torch.tensor(0.0), 1.0))
    is_seen = ~seen.isnan()
    pyro.sample("seen", dist.Normal(loc[is_seen], 1.0).to_event(1), obs=seen[is_seen])
    pyro.factor("distinct", -(loc[: len(lengths.unique())] ** 2).sum() / lengths.max().item())


@pytest.mark.parametrize("model", [walk_of_the_longest, what_is_seen])
def test_python_may_ask_data(model: Any) -> None:
    """Lengths, masks and numbers of data are frozen, and recorded anew where data change."""
    lengths, seen = LENGTHS.clone(), SEEN.clone()
    compare(model, lengths, seen)
    compare(model, torch.tensor([2, 2, 1]), torch.tensor([1.0, 0.5, math.nan]))
    potential = Potential(what_is_seen, lengths, seen)
    at = potential.init(2, seed=0)
    before = potential(at)
    for change in (lambda: lengths.clamp_(max=3), lambda: seen[:1].fill_(math.nan)):
        change()
        expected = Potential(what_is_seen, lengths, seen, backend="eager")(at)
        assert not torch.equal(expected, before)
        torch.testing.assert_close(potential(at), expected)
        before = expected


def test_python_may_not_ask_latent_values() -> None:
    """Nor what they were written into, or numbers that are drawn."""

    def written() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        kept = torch.zeros(2)
        kept[0] = x[0]
        pyro.factor("first", x.sum() * (1.0 if kept[0].item() > 0.0 else 2.0))

    def drawn() -> None:
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.factor("factor", x * (1.0 if torch.rand(()).item() < 2.0 else 0.0))

    for model in (written, drawn):
        with pytest.warns(UserWarning, match="cannot be recorded"):
            Potential(model).value_and_grad({"x": torch.zeros(1, *(2,) * (model is written))})


def test_tensors_are_what_they_were_before() -> None:
    """Recording changes methods of tensors for its time; a number is no sequence after it."""

    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    potential = Potential(model)
    potential(potential.init(2, seed=0))
    assert torch.tensor([torch.tensor(1.0), 2.0]).tolist() == [1.0, 2.0]
