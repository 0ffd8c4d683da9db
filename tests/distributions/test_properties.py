"""Every law is finite anywhere in its parameters' space, and refuses what lies outside by name."""

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from pyro_ext.distributions import (
    BFRY,
    BetaPrimeBFRY,
    GeneralizedBFRY,
    PositiveStable,
    RectifiedGamma,
    StableBetaBFRY,
    TiltedBFRY,
    TiltedStable,
    TruncatedBFRY,
)

DIGITS = 12.0
NUM_LAWS = 24
PARAMETERS = {
    BFRY: ("fraction",),
    BetaPrimeBFRY: ("discount", "excess", "positive", "positive"),
    GeneralizedBFRY: ("discount", "excess", "positive", "positive"),
    PositiveStable: ("fraction",),
    RectifiedGamma: ("positive", "positive", "positive"),
    StableBetaBFRY: ("discount", "positive", "positive"),
    TiltedBFRY: ("discount", "positive", "positive"),
    TiltedStable: ("positive", "fraction", "tilt"),
    TruncatedBFRY: ("discount", "positive"),
}


def positive(unit: Tensor) -> Tensor:
    """From 1e-12 to 1e12, evenly in the logarithm."""
    return 10.0 ** (DIGITS * (2.0 * unit - 1.0))


def fraction(unit: Tensor) -> Tensor:
    """From 1e-12 to 1 - 1e-12, or the last number of the type."""
    near_zero = 0.5 * 10.0 ** (-DIGITS * (1.0 - 2.0 * unit).clamp(min=0.0))
    near_one = 1.0 - 0.5 * 10.0 ** (-DIGITS * (2.0 * unit - 1.0).clamp(min=0.0))
    return torch.where(unit < 0.5, near_zero, near_one)


def inside(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype).clamp(max=1.0 - torch.finfo(dtype).eps / 2)


def parameters_from(make, units: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Parameters of a law from numbers in [0, 1], which hypothesis makes simple."""
    values: list[Tensor] = []
    for kind, unit in zip(PARAMETERS[make], units, strict=True):
        if kind == "fraction":
            value = inside(fraction(unit), dtype)
        elif kind == "discount":
            value = inside(torch.where(unit < 0.1, 0.0, fraction(unit)), dtype)
        elif kind == "excess":
            least = torch.nextafter(values[0], torch.full_like(values[0], 2.0))
            value = torch.maximum((values[0].double() + positive(unit)).to(dtype), least)
        elif kind == "tilt":
            value = torch.where(unit < 0.1, 0.0, positive(unit)).to(dtype)
        else:
            value = positive(unit).to(dtype)
        values.append(value.requires_grad_())
    return values


def place_from(make, unit: Tensor, parameters: list[Tensor]) -> Tensor:
    """A place in the support, sometimes its upper end."""
    dtype = parameters[0].dtype
    if make is StableBetaBFRY:
        return inside(fraction(unit), dtype).requires_grad_()
    place = positive(unit).to(dtype)
    if make in (TruncatedBFRY, RectifiedGamma):
        place = torch.minimum(place, parameters[-1].detach())
    return place.requires_grad_()


def results(make, parameters: list[Tensor], place: Tensor) -> dict[str, Tensor]:
    law = make(*parameters)
    leaves = [place, *parameters]
    found = {}
    for method in ("log_prob", "cdf"):
        value = getattr(law, method)(place)
        slopes = torch.autograd.grad(value.sum(), leaves, retain_graph=True, allow_unused=True)
        found[method] = value.detach()
        for index, slope in enumerate(slopes):
            if slope is not None:
                found[f"{method} by {index}"] = slope
    return found


@pytest.mark.parametrize("make", PARAMETERS, ids=lambda make: make.__name__)
@hypothesis.settings(max_examples=20)
@hypothesis.given(data=st.data())
def test_finite_everywhere(make, data):
    """Values, draws and gradients; single precision overflows only where its numbers do.

    Draws have a gradient while they are not so large that it overflows.
    """
    shape = (1 + len(PARAMETERS[make]), NUM_LAWS)
    units = torch.from_numpy(data.draw(arrays(np.float64, shape, elements=st.floats(0.0, 1.0))))
    for dtype in (torch.float64, torch.float32):
        parameters = parameters_from(make, units[1:], dtype)
        place = place_from(make, units[0], parameters)
        found = results(make, parameters, place)
        if dtype == torch.float64:
            assert all(value.isfinite().all() for value in found.values()), found
        else:
            doubled = [value.detach().double().requires_grad_() for value in (place, *parameters)]
            exact = results(make, doubled[1:], doubled[0])
            for name, value in found.items():
                assert not value.isnan().any(), name
                assert value[exact[name].abs() < 1e37].isfinite().all(), name
        assert ((found["cdf"] >= 0) & (found["cdf"] <= 1)).all()

        torch.manual_seed(0)
        law = make(*parameters)
        draws = law.rsample()
        assert law.support.check(draws.detach()).all()
        assert draws.isfinite().all() and (draws > 0).all()
        assert not law.log_prob(draws.detach()).isnan().any()
        cdf = law.cdf(draws.detach())
        assert ((cdf >= 0) & (cdf <= 1)).all()
        moderate = (draws.detach() < torch.finfo(dtype).max ** 0.25) & (draws.detach() > 1e-9)
        slopes = torch.autograd.grad(draws.sum(), parameters, allow_unused=True)
        for slope in slopes:
            assert slope is None or slope[moderate].isfinite().all()


BOUNDS = {
    "discount": (0.0, 1.0, "[)"),
    "stability": (0.0, 1.0, "()"),
    "tilt": (0.0, float("inf"), "[)"),
}
NAMES = {
    BFRY: ("discount",),
    BetaPrimeBFRY: ("discount", "tail_index", "level", "rate"),
    GeneralizedBFRY: ("discount", "tail_index", "level", "scale"),
    PositiveStable: ("stability",),
    RectifiedGamma: ("concentration", "rate", "high"),
    StableBetaBFRY: ("discount", "concentration", "level"),
    TiltedBFRY: ("discount", "level", "tilt"),
    TiltedStable: ("mass", "stability", "tilt"),
    TruncatedBFRY: ("discount", "high"),
}


@pytest.mark.parametrize(
    "make, name", [(make, name) for make, names in NAMES.items() for name in names]
)
@hypothesis.settings(max_examples=20)
@hypothesis.given(number=st.floats())
def test_what_lies_outside_is_named(make, name, number):
    low, high, brackets = BOUNDS.get(name, (0.0, float("inf"), "()"))
    allowed = (number >= low if brackets[0] == "[" else number > low) and number < high
    hypothesis.assume(not allowed)
    values = {other: 0.8 if other == "tail_index" else 0.5 for other in NAMES[make]}
    with pytest.raises(ValueError, match=rf"\b(log_)?{name}\b"):
        make(**(values | {name: torch.tensor(number, dtype=torch.float64)}))
