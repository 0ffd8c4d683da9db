"""Data in other forms than tensors, data that are not finite, arguments where none are taken."""

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ext.inference import ExpertBuffer
from pyro_ext.inference.pseudocoresets import AutoPseudocoreset, ForwardKL
from tests.inference.pseudocoresets.coreset_models import labeled, logistic


def test_arrays_and_lists_are_taken(subtests: pytest.Subtests) -> None:
    x, y = labeled(50)
    expected = AutoPseudocoreset(logistic, x, y, size=6, seed=0)
    experts: Any = {"num_experts": 2, "num_epochs": 1, "seed": 0, "progress": False}
    trajectories = ExpertBuffer.collect(logistic, x, y, **experts).trajectories
    forms = {
        "arrays": (x.numpy().astype(np.float64), y.numpy()),
        "lists": (x.tolist(), y.tolist()),
        "both": (x.numpy(), tuple(y.tolist())),
    }
    for name, args in forms.items():
        with subtests.test(name):
            guide = AutoPseudocoreset(logistic, *args, size=6, seed=0)
            for row, other in zip(guide.pseudodata, expected.pseudodata, strict=True):
                torch.testing.assert_close(row, other)
            loss = ForwardKL().loss(logistic, guide, *args)  # arguments of SVI may be either
            assert loss == pytest.approx(ForwardKL().loss(logistic, guide, x, y), rel=1e-6)
            found = ExpertBuffer.collect(logistic, *args, **experts).trajectories
            torch.testing.assert_close(found, trajectories)


def test_short_lists_stay_lists() -> None:
    def model(sizes: list[int], x: Tensor, names: list[str]) -> None:
        assert isinstance(sizes, list) and names == ["a", "b"]
        loc = pyro.sample("loc", dist.Normal(torch.zeros(sizes[0]), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc.sum(), 1.0), obs=x)

    guide = AutoPseudocoreset(model, [2, 3], np.ones(9), ["a", "b"], size=3, seed=0)
    assert guide.learnable == ("x",)


def test_data_must_be_finite(subtests: pytest.Subtests) -> None:
    x, y = labeled(50)
    cases = {
        "x": (torch.where(torch.arange(150).reshape(50, 3) == 10, math.nan, x), y, "nan in row 3"),
        "y": (
            x,
            torch.where(torch.arange(50) > 35, math.inf, y),
            "inf in row 36, inf in row 37, .* in 11 more of 50 rows",
        ),
    }
    for name, (*args, rows) in cases.items():
        told = f"{name} must be finite, got {rows}"
        for kind in (tuple(args), [part.tolist() for part in args]):
            with subtests.test(name=name, kind=type(kind[0]).__name__):
                with pytest.raises(ValueError, match=told):
                    AutoPseudocoreset(logistic, *kind, size=6)
                with pytest.raises(ValueError, match=told):
                    ExpertBuffer.collect(logistic, *kind)


def test_a_conditioned_model_takes_no_arguments() -> None:
    x, y = labeled(50)
    guide = AutoPseudocoreset(logistic, x, y, size=6, seed=0)
    with pytest.raises(TypeError, match=r"args must be none: .* condition\(\) .* got 2"):
        guide.condition(logistic)(x, y=y)
    guide.condition(logistic)()
