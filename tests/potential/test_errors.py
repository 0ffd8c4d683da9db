"""What a potential refuses, and that it says which site is at fault."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide.initialization import init_to_uniform, init_to_value
from torch import Tensor, nn
from torch.distributions.transforms import ExpTransform

from pyro_ext.potential import Potential


def normal(x: Tensor, size: int | None = None) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x), subsample_size=size) as index:
        pyro.sample("x", dist.Normal(loc.sum(), scale), obs=x[index])


def discrete() -> None:
    probs = pyro.sample("probs", dist.Beta(1.0, 1.0))
    flag = pyro.sample("flag", dist.Bernoulli(probs))
    pyro.sample("x", dist.Normal(flag, 1.0), obs=torch.tensor(0.0))


def count() -> None:
    pyro.sample("count", dist.Poisson(2.0))


def delta() -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    double = pyro.sample("double", dist.Delta(2.0 * loc).mask(True))
    pyro.sample("x", dist.Normal(double, 1.0), obs=torch.tensor(0.3))


def nothing_latent() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))


def sequential() -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", 5, subsample_size=2):
        pyro.sample(f"x_{i}", dist.Normal(loc, 1.0), obs=torch.tensor(0.0))


def local_in_a_given_minibatch() -> None:
    with pyro.plate("data", 9, subsample=torch.tensor([1, 2])):
        pyro.sample("local", dist.Normal(0.0, 1.0))


def no_bijection() -> None:
    pyro.sample("direction", dist.ProjectedNormal(torch.ones(3)))


def two_of_one_name() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(0.0, 1.0))


def nan_masked() -> None:
    """A masked NaN leaves the density finite, but not its gradient."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    x = torch.tensor([0.0, torch.nan])
    with pyro.plate("data", 2):
        pyro.sample("x", dist.Normal(loc, 1.0).mask(~x.isnan()), obs=x)


def invalid_parameter() -> None:
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    dist.Normal(0.0, -scale)


def never_finite() -> None:
    pyro.sample("fine", dist.Normal(0.0, 1.0))
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    pyro.factor("bad", loc.abs().neg().log())


def no_factor() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    matrix = -torch.eye(2) - x**2
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), matrix), obs=torch.zeros(2))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (discrete, "'flag' is a discrete latent .*Bernoulli.*such as .*NUTS"),
        (count, "'count' is a discrete latent .*Poisson.*PriorProposals"),
        (delta, r"'double' is a Delta .* pyro.deterministic\('double'"),
        (nothing_latent, "no latent site"),
        (sequential, "sequential plate 'data', which takes 2 of 5"),
        (local_in_a_given_minibatch, "'local' is latent in the plate 'data'"),
        (no_bijection, "site 'direction' .ProjectedNormal. has the support"),
        (two_of_one_name, "two sample sites named 'x'"),
        (nan_masked, r"site\(s\) \['x'\], or its gradient, is not finite"),
        (invalid_parameter, "scale"),
        (never_finite, r"none of 100 initial points.*site\(s\) \['bad'\]"),
        (no_factor, "cholesky"),
    ],
    ids=lambda each: each.__name__ if callable(each) else "",
)
def test_models_that_are_refused(model: Callable[[], None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Potential(model)


# Ways to take a number out of its tensor.
CUTS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda loc: loc.item(),
    "float": lambda loc: float(loc.detach()),
    "int": lambda loc: int(10.0 * loc),
    "numpy": lambda loc: torch.tensor(loc.detach().numpy() * 2.0),
    "tolist": lambda loc: loc.tolist(),
    "long": lambda loc: (10.0 * loc).long(),
    "data": lambda loc: loc.data,
    "no_grad": torch.no_grad()(lambda loc: 2.0 * loc),
}


def mean_after(cut: Callable[[Tensor], Any], loc: Tensor, other: Tensor) -> Tensor:
    return other + cut(loc)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("backend", ["eager", "trace"])
def test_numbers_taken_out_of_tensors(
    backend: Any, subtests: pytest.Subtests, float64: None
) -> None:
    """The density would be right, and its gradient silently wrong."""

    def model(mean: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        other = pyro.sample("other", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("data", len(x), subsample_size=2) as index:
            pyro.sample("x", dist.Normal(mean(loc, other), scale), obs=x[index])

    for way, cut in CUTS.items():
        message = "site 'x' depends on the latent site 'loc', but its log density has no gradient"
        with subtests.test(way), pytest.raises(ValueError, match=message):
            Potential(model, partial(mean_after, cut), torch.zeros(4), backend=backend)

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            return torch.tensor(2.0 * x.item())

        @staticmethod
        def backward(context: Any, *gradients: Tensor) -> Tensor:
            return 2.0 * gradients[0]

    def stable(loc: Tensor, other: Tensor) -> Tensor:
        both = torch.stack([loc, other])
        return (both - both.max().detach()).logsumexp(0) + both.max().detach()

    fine: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "a function with a derivative": lambda loc, other: Twice.apply(loc) + other,
        "a number that cancels": stable,
        "a comparison": lambda loc, other: torch.where(loc > 0.0, loc, other),
        "a number that plays no part": lambda loc, other: other + torch.zeros_like(loc),
    }
    for way, mean in fine.items():
        with subtests.test(way):
            Potential(model, mean, torch.zeros(4), backend=backend)


@pytest.mark.parametrize("size", [None, 2])
def test_nan_in_data(size: int | None) -> None:
    """One bad observation is found even where the first minibatch does not hold it."""
    x = torch.zeros(50)
    x[37] = torch.nan
    with pytest.raises(ValueError, match="x must be finite, got nan in row 37: .*'x'"):
        Potential(normal, x, size)


def test_observation_outside_the_support() -> None:
    def model(x: Tensor, mask: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(rate / (1 + rate)).mask(mask), obs=x)

    x = torch.tensor([0.0, 1.0, 3.0])
    with pytest.raises(ValueError, match="site 'x' has observed values outside the support"):
        Potential(model, x, torch.tensor([True, True, True]))
    Potential(model, x, torch.tensor([True, True, False]))
    with pyro.validation_enabled(False):
        Potential(model, x, torch.tensor([True, True, True]))


def test_values_of_distributions_that_are_told_not_to_validate(subtests: pytest.Subtests) -> None:
    def model(observed: Callable[[Tensor], Any], x: Tensor) -> None:
        probs = pyro.sample("probs", dist.Beta(torch.ones(2), 1.0).to_event(1))
        with pyro.plate("data", 3):
            pyro.sample("x", observed(probs), obs=x)

    def bernoulli(probs: Tensor) -> Any:
        return dist.Bernoulli(probs, validate_args=False)

    cases: dict[str, tuple[Callable[[Tensor], Any], bool]] = {
        "plain": (lambda probs: bernoulli(probs[0]), True),
        "expanded": (lambda probs: bernoulli(probs[0]).expand([3]), True),
        "masked": (lambda probs: bernoulli(probs[0]).mask(torch.ones(3) > 0), True),
        "event": (lambda probs: bernoulli(probs).to_event(1), True),
        "by default": (lambda probs: dist.Bernoulli(probs[0]), False),
        "event by default": (lambda probs: dist.Bernoulli(probs).to_event(1), False),
        "transformed": (
            lambda probs: dist.TransformedDistribution(
                dist.Normal(probs[0], 1.0, validate_args=False), ExpTransform()
            ),
            False,
        ),
    }
    for label, (observed, is_allowed) in cases.items():
        x = torch.full((3, 2) if "event" in label else (3,), -0.5)
        with subtests.test(label):
            if is_allowed:
                assert torch.isfinite(Potential(model, observed, x, backend="eager")._start).all()
            else:
                with pytest.raises(ValueError, match="site"):
                    Potential(model, observed, x, backend="eager")


def test_values_are_checked_once() -> None:
    """What was let through when the potential was made is not held up later."""

    def model() -> None:
        pyro.sample(
            "x", dist.Bernoulli(pyro.sample("p", dist.Beta(1.0, 1.0))), obs=torch.ones(()) / 2
        )

    with pyro.validation_enabled(False):
        potential = Potential(model, backend="eager")
    assert torch.isfinite(potential(potential.init(1, seed=0))).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_starts_have_a_density_of_which_changes_are_seen(dtype: torch.dtype) -> None:
    """Where the density is rounded to whole numbers, no trajectory goes anywhere."""
    most = 1.0 / torch.finfo(dtype).eps

    def starts(energy: Callable[[Tensor], Tensor], strategy: Any) -> tuple[Tensor, Tensor]:
        def model() -> None:
            x = pyro.sample("x", dist.Normal(torch.zeros((), dtype=dtype), 1.0))
            pyro.factor("energy", -energy(x))

        potential = Potential(model)
        params = potential.init(20, seed=0, init_strategy=strategy)
        return params["x"], potential(params)

    points, values = starts(lambda x: (0.5 * most) ** x.abs(), init_to_uniform)
    assert values.max() < most and points.abs().max() > 0.5
    points, values = starts(lambda x: most * (10.0 + x.abs()), init_to_uniform)
    assert values.min() > most and points.abs().mean() < 0.5, "not the likeliest of some tries"
    values_of = {"x": torch.ones((), dtype=dtype)}
    points, _ = starts(lambda x: most * (10.0 + x.abs()), init_to_value(values=values_of))
    assert (points == 1.0).all()


def test_data_of_another_type() -> None:
    """Tensors made of NumPy's arrays are double, and what a model makes itself is not."""

    def model(x: Tensor, y: Tensor, sizes: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x @ weight, 1.0).to_event(1), obs=y)

    x, y = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    wanted = r"convert x and y with .to\(torch.float32\), or .*_default_dtype\(torch.float64"
    with pytest.raises(ValueError, match=wanted):
        Potential(model, x, y, torch.arange(5))


def test_initial_values_without_density() -> None:
    potential = Potential(normal, torch.zeros(3))
    values = {"loc": torch.zeros(2), "scale": torch.tensor(torch.inf)}
    with pytest.raises(ValueError, match=r"none of 100 initial points"):
        potential.init(1, seed=0, init_strategy=init_to_value(values=values))


def test_initial_values_of_local_latents() -> None:
    """Values given over all of the data reach each subsample."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y), subsample_size=3) as index:
            scale = pyro.sample("scale", dist.Gamma(2.0, 1.0).expand([2]).to_event(1))
            pyro.sample("y", dist.Normal(0.0, scale).to_event(1), obs=y[index])

    potential = Potential(model, torch.zeros(7, 2), backend="eager")
    values = {"scale": torch.arange(1.0, 15.0).reshape(7, 2)}
    params = potential.init(2, seed=0, init_strategy=init_to_value(values=values))
    torch.testing.assert_close(params["scale"].exp(), values["scale"].expand(2, 7, 2))


@pytest.mark.parametrize("backend", ["eager", "trace"])
def test_dropout_in_training_mode(backend: Any) -> None:
    dropout = nn.Dropout(0.5)

    def model(x: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0).expand([20]).to_event(1))
        pyro.sample("x", dist.Normal(dropout(weight), 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"draws random numbers of its own.*module.eval\(\)"):
        Potential(model, torch.zeros(20), backend=backend)
    dropout.eval()
    Potential(model, torch.zeros(20), backend=backend)


@pytest.mark.parametrize("is_argument", [True, False])
def test_batch_norm_in_training_mode(is_argument: bool) -> None:
    layer = nn.BatchNorm1d(2, affine=False)

    def model(x: Tensor, buffers: list[Tensor]) -> None:
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(layer(x) * weight, 1.0).to_event(2), obs=x)

    buffers = list(layer.buffers()) if is_argument else []
    with pytest.raises(ValueError, match=r"changes its data or buffers.*module.eval\(\)"):
        potential = Potential(model, torch.randn(5, 2), buffers)
        potential(potential.init(1, seed=0))


LOC, SCALE, PAIRS = torch.zeros(3, 2), torch.ones(3), torch.zeros(3, 2, dtype=torch.int64)
IN_PARAMS = ("__call__", "value_and_grad", "full")
IN_SAMPLES = ("unconstrain", "log_likelihood", "predictive")


@pytest.mark.parametrize(
    ("methods", "changes", "message"),
    [
        (IN_PARAMS, {"more": SCALE}, "params has the sites .*'more'"),
        (IN_PARAMS, {"loc": LOC[:, :1]}, r"params\['loc'\] has shape \(3, 1\)"),
        (IN_PARAMS, {"loc": LOC[0]}, r"params\['loc'\] has shape \(2,\)"),
        (IN_PARAMS, {"scale": SCALE[:2]}, r"params\['scale'\] has the leading dimensions \(2,\)"),
        (IN_PARAMS, {"scale": LOC[:, :1]}, r"params\['scale'\] has shape \(3, 1\)"),
        (IN_PARAMS, {"scale": SCALE.long()}, r"params\['scale'\] must be a floating tensor"),
        (IN_PARAMS, {"scale": [0.0, 1.0, 2.0]}, r"params\['scale'\] must be a floating tensor"),
        # A missing value must not be drawn from the prior in silence.
        (IN_PARAMS, {"scale": None}, r"params has the sites \['loc'\], but the model has"),
        (["potential"], {"scale": None}, r"params lacks the latent sites \['scale'\]"),
        (["constrain"], {"loc": None}, r"params lacks the latent sites \['loc'\]"),
        (IN_SAMPLES, {"scale": None}, r"samples lacks the latent sites \['scale'\]"),
        (IN_SAMPLES, {"loc": torch.zeros(3, 3)}, r"samples\['loc'\] has shape \(3, 3\)"),
        (IN_SAMPLES, {"scale": SCALE[:2]}, r"samples\['scale'\] has the leading dimensions"),
    ],
)
def test_wrong_values(methods: Sequence[str], changes: dict[str, Any], message: str) -> None:
    potential = Potential(normal, torch.zeros(5), backend="eager")
    values = {"loc": LOC, "scale": SCALE} | changes
    values = {name: value for name, value in values.items() if value is not None}
    for method in methods:
        with pytest.raises((TypeError, ValueError), match=message):
            getattr(potential, method)(values)


@pytest.mark.parametrize(
    ("subsample", "message"),
    [
        ({"rows": PAIRS[0]}, r"names \['rows'\].*plates are \['data'\]"),
        ({"data": PAIRS[:, 0]}, r"subsample\['data'\] has shape \(3,\)"),
        ({"data": PAIRS[:2]}, r"wanted \(3, 2\) or \(2,\)"),
        ({"data": PAIRS[0].float()}, r"subsample\['data'\] must be an int64 tensor"),
        ({"data": [0, 1]}, r"subsample\['data'\] must be an int64 tensor"),
    ],
)
def test_wrong_subsample(subsample: Any, message: str) -> None:
    potential = Potential(normal, torch.zeros(5), 2, backend="eager")
    for function in (potential, potential.value_and_grad):
        with pytest.raises((TypeError, ValueError), match=message):
            function({"loc": LOC, "scale": SCALE}, subsample)


def test_improper_prior_is_not_drawn() -> None:
    def model() -> None:
        flat = dist.ImproperUniform(dist.constraints.positive, (), (2,))
        scale = pyro.sample("scale", flat)
        pyro.sample("x", dist.Normal(0.0, scale).to_event(1), obs=torch.ones(2))

    potential = Potential(model)
    assert potential.constrain(potential.init(2, seed=0))["scale"].min() > 0
    with pytest.raises(ValueError, match="'scale' cannot be drawn from its prior: ImproperUniform"):
        potential.prior(1)
