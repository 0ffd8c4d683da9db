"""Checks of arguments: what they take, and the messages that they write."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_ext._lib import checks
from pyro_ext._lib.hints import MOVED


@pytest.mark.parametrize("value", [[1.0, 2.0], (1.0, 2.0), np.array([1.0, 2.0]), torch.ones(2)])
def test_lists_and_arrays_become_tensors(value):
    tensor = checks.as_tensor("x", value, "(n,)")
    assert isinstance(tensor, torch.Tensor) and tensor.shape == (2,)
    assert checks.as_tensor("x", tensor) is tensor


def test_types_are_those_that_were_asked_for():
    like = torch.zeros((), dtype=torch.float64)
    assert checks.as_tensor("x", [0.1], like=like).dtype == torch.float64
    assert checks.as_tensor("x", [1], like=like).dtype == torch.int64
    assert checks.as_tensor("x", [0.1], like=like).item() == 0.1
    assert checks.as_tensor("x", np.float32([0.1]), like=like).item() == np.float32(0.1)
    exact = checks.as_tensor(
        "x", [0.1], dtype=torch.float64
    )  # without a detour through single precision
    assert exact.item() == 0.1
    assert checks.as_tensor("x", np.array([True]), kind="booleans").dtype == torch.bool
    for small in (torch.bool, torch.int8):  # to compute with, without overflow, or to index by
        assert checks.as_tensor("x", torch.ones(2, dtype=small)).dtype == torch.float32
        assert (
            checks.as_tensor("x", torch.ones(2, dtype=small), kind="integers").dtype == torch.int64
        )


def test_what_cannot_be_computed_with_is_refused():
    for wrong, got in (
        (torch.eye(2).to_sparse(), r"sparse_coo torch.float32 tensor of shape \(2, 2\)"),
        (torch.ones(3, device="meta"), r"torch.float32 tensor of shape \(3,\) on the device meta"),
        (torch.ones((), device="meta"), r"torch.float32 tensor of shape \(\) on the device meta"),
    ):
        with pytest.raises(TypeError, match=f"x must be a dense tensor with values, got a {got}"):
            checks.as_tensor("x", wrong)
    assert checks.integer("size", 2**63 - 1, 1) == 2**63 - 1
    with pytest.raises(ValueError, match="size must be an integer <= 9223372036854775807, got 1"):
        checks.integer("size", 10**30, 1)


SHAPES = [
    ("(n, d)", (3, 2), True),
    ("(n, d)", (3,), False),
    ("(*batch, n, 2)", (4, 3, 2), True),
    ("(*batch, n, 2)", (3, 2), True),
    ("(*batch, n, 2)", (4, 3, 1), False),
    ("(*batch, n)", (), False),
    ("(n, ...)", (3, 2, 1), True),
    ("(n, ...)", (), False),
    ("()", (), True),
    ("(3,)", (3,), True),
    ("(3,)", (2,), False),
]


@pytest.mark.parametrize(("wanted", "shape", "fits"), SHAPES)
def test_shapes_are_read_as_they_are_written(wanted, shape, fits):
    if fits:
        checks.as_tensor("x", torch.zeros(shape), wanted)
        return
    with pytest.raises(ValueError) as caught:
        checks.as_tensor("x", torch.zeros(shape), wanted)
    assert str(caught.value) == f"x must have the shape {wanted}, got {shape}"


def test_rows_that_are_not_finite_are_named():
    x = torch.zeros(9, 2)
    checks.all_finite("x", x)
    x[2, 1], x[4, 0] = math.nan, -math.inf
    with pytest.raises(ValueError, match="x must be finite, got nan in row 2, -inf in row 4$"):
        checks.all_finite("x", x)
    x[5:] = math.nan
    with pytest.raises(ValueError, match="nan in row 5, and in 3 more of 9 rows"):
        checks.all_finite("x", x)


def test_what_a_graph_records_is_not_looked_at():
    from torch.fx.experimental.proxy_tensor import make_fx

    def function(x):
        return 2.0 * checks.as_tensor("x", x, "(n,)", finite=True)

    graph = make_fx(function)(torch.ones(2))
    assert torch.equal(graph(torch.ones(2)), torch.full((2,), 2.0))


def test_arguments_that_moved_say_where(subtests):
    """The table is that of the changelog, and all that it names refuse."""
    changelog = Path(__file__).parents[1].joinpath("CHANGELOG.md").read_text("utf-8")
    modules = [
        importlib.import_module(f"pyro_ext.{name}")
        for name in ("inference", "inference.smc", "models.diffusion", "models.ensembles")
        + ("models.federated", "models.symmetry")
    ]
    for owner, moved in MOVED.items():
        found = next(getattr(module, owner) for module in modules if hasattr(module, owner))
        for name, now in moved.items():
            with subtests.test(owner, name=name):
                with pytest.raises(TypeError, match=f"{owner} no longer has the argument '{name}'"):
                    found(**{name: 1.0})
                assert name in changelog and now.partition("(")[0].partition("=")[0] in changelog
