"""Checks of networks: types, gradients and transforms of modules, and of set and axial blocks."""

import math
import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_ext.nn.axial import check_axis_equivariance
from pyro_ext.testing.potential import _check_slope, _compare

__all__ = ["check_axial_block", "check_module", "check_set_block"]

_FILLINGS = (7.0, math.nan, math.inf)
_ROUNDING = 1e-12


def check_module(
    make: Callable[[], nn.Module],
    *inputs: Tensor,
    compiled: bool = False,
    seed: int = 0,
    tolerance: float = 1e-4,
) -> None:
    """Check a module that maps tensors to a tensor, row by row.

    - A row has the same outputs alone or among others.
    - Copies by ``pickle`` and by the state dict have the same outputs.
    - Outputs in float64 and float32 agree.
    - Gradients with respect to parameters and inputs agree with finite differences.
    - :func:`torch.vmap` over parameters and a recorded graph agree with the module.

    :param make: a function that creates a module with parameters, which may be random.
    :param inputs: tensors in float32 or of a non-floating type, with at least two rows. **Shape:**
        ``(n, *event)`` each.
    :param bool compiled: whether to check :func:`torch.compile` too, in one graph.
    :param int seed: seed of the parameters.
    :param float tolerance: allowed difference, relative to the size of the values.
    :raises AssertionError: if a check fails; the message says which, and by how much.

    Example::

        >>> from pyro_ext.nn import MLP
        >>> check_module(lambda: MLP(4, [5], 3), torch.randn(6, 4))
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        modules = [make() for _ in range(3)]
        noise = [torch.randn(x.shape, dtype=torch.float64) for x in inputs]
    module = modules[0]
    outputs: Tensor = module(*inputs)
    assert outputs.dtype == torch.float32, f"outputs are {outputs.dtype} of inputs in float32"
    _compare("outputs of two calls", module(*inputs), outputs, 0.0)
    for row in range(2):
        alone = module(*(x[row : row + 1] for x in inputs))
        _compare(f"row {row} alone and among others", alone, outputs[row : row + 1], tolerance)
    _compare("a pickled module", pickle.loads(pickle.dumps(module))(*inputs), outputs, 0.0)
    other = deepcopy(modules[1])
    other.load_state_dict(module.state_dict())
    _compare("a module of the same state", other(*inputs), outputs, 0.0)

    _check_gradients(deepcopy(module).double(), inputs, outputs, noise, tolerance)

    def run(values: dict[str, Tensor]) -> Tensor:
        result: Tensor = functional_call(module, values, inputs)
        return result

    values, buffers = stack_module_state(modules)
    every = torch.stack([one(*inputs) for one in modules])
    _compare("torch.vmap and a loop", torch.vmap(run)({**values, **buffers}), every, tolerance)
    states = [{**dict(one.named_parameters()), **dict(one.named_buffers())} for one in modules]
    graph = make_fx(run)(states[0])
    _compare("a recorded graph at other parameters", graph(states[1]), every[1], tolerance)
    if compiled:
        torch._dynamo.reset()  # it counts what it has compiled of other modules of the kind
        found = torch.compile(module, fullgraph=True)(*inputs)
        _compare("a compiled module", found, outputs, tolerance)


def _check_gradients(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    outputs: Tensor,
    noise: list[Tensor],
    tolerance: float,
) -> None:
    """In float64, along a direction, in all parameters and inputs at once."""
    is_float = [x.is_floating_point() for x in inputs]
    exact = [x.double() if real else x for x, real in zip(inputs, is_float, strict=True)]
    found = module(*exact)
    assert found.dtype == torch.float64, f"outputs are {found.dtype} of a module in float64"
    _compare("outputs in float32 and float64", outputs.double(), found, tolerance)
    parameters = dict(module.named_parameters())
    leaves = [*parameters.values(), *(x for x, real in zip(exact, is_float, strict=True) if real)]
    sizes = [leaf.numel() for leaf in leaves]
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(found.shape, generator=generator, dtype=torch.float64)

    def loss(point: Tensor) -> Tensor:
        parts = iter(point.split(sizes))
        values = {name: next(parts).view_as(value) for name, value in parameters.items()}
        given = [
            next(parts).view_as(x) if real else x for x, real in zip(exact, is_float, strict=True)
        ]
        result: Tensor = (weights * functional_call(module, values, tuple(given))).sum()
        return result

    point = torch.cat([leaf.detach().flatten() for leaf in leaves]).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(point), point)
    for part in (slice(0, None), slice(sum(sizes[: len(parameters)]), None)):
        direction = torch.zeros_like(gradient)
        direction[part] = torch.randn(direction[part].shape, generator=generator).to(gradient)
        scale = float(gradient.norm() * direction.norm())
        slope = gradient @ direction
        _check_slope(slope, loss, point.detach(), direction, scale)


def check_set_block(
    make: Callable[[], Callable[..., Tensor]],
    num_features: int,
    *,
    equivariant: bool,
    compiled: bool = False,
    seed: int = 0,
    tolerance: float = 1e-5,
) -> None:
    """Check a block that maps sets to sets or to tensors, called as ``block(inputs, mask=None)``.

    Permuting the elements must permute the outputs or leave them unchanged. The values of padding
    must affect neither outputs nor gradients. Outputs must be finite for sets that are empty or all
    padding. In float64, permutations and padding may cause no more than rounding errors.

    :param make: a function that creates the block. Its masks are true for actual elements.
    :param int num_features: number of features of an element.
    :param bool equivariant: whether there is an output for each element. Otherwise the order must
        not matter.
    :param bool compiled: whether to check :func:`torch.compile` too, with padding in one graph.
    :param int seed: seed of elements and parameters.
    :param float tolerance: allowed difference, relative to the size of the values.
    :raises AssertionError: if a check fails; the message says which, and by how much.

    Example::

        >>> from pyro_ext.nn import SAB
        >>> check_set_block(lambda: SAB(3, 12, num_heads=3), 3, equivariant=True)
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        block = make()
        x = torch.randn(5, 6, num_features)
        weights = torch.randn_like(block(x))

    def at(outputs: Tensor, elements: Tensor) -> Tensor:
        return outputs[:, elements] if equivariant else outputs

    outputs = block(x)
    order = torch.tensor([3, 5, 1, 0, 2, 4])  # no element stays where it was
    permuted = block(x[:, order])
    kind = "equivariance" if equivariant else "invariance"
    _compare(f"{kind}: outputs of permuted elements", permuted, at(outputs, order), tolerance)
    changed = block(torch.cat([x[:, :5], x[:, 5:] + 1.0], 1))
    assert not torch.equal(changed[:, 0], outputs[:, 0]), "outputs do not depend on other elements"
    everything = torch.ones(5, 6, dtype=torch.bool)
    _compare("outputs with a mask of all", block(x, everything), outputs, tolerance)

    present = torch.tensor([0, 1, 5, 6, 7, 8])
    mask = torch.zeros(5, 9, dtype=torch.bool)
    mask[:, present] = True
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad((weights * block(leaf)).sum(), leaf)
    for filling in _FILLINGS:
        padded = torch.full((5, 9, num_features), filling)
        padded[:, present] = x
        padded.requires_grad_()
        found = at(block(padded, mask), present)
        _compare(f"outputs with padding of {filling}", found, outputs, tolerance)
        (gradient,) = torch.autograd.grad((weights * found).sum(), padded)
        what = f"gradients with padding of {filling}"
        _compare(what, gradient[:, present], expected, 10.0 * tolerance)
        assert bool((gradient[~mask] == 0).all()), f"{what}: the gradient in the padding is not 0"

    empty = block(x[:, :0])
    assert bool(empty.isfinite().all()), f"outputs of empty sets are {empty}"
    of_padding = block(leaf, ~everything)
    assert bool(of_padding.isfinite().all()), f"outputs of sets of padding are {of_padding}"
    (gradient,) = torch.autograd.grad(of_padding.sum(), leaf, materialize_grads=True)
    assert bool(gradient.isfinite().all()), f"gradients in sets of padding are {gradient}"
    if compiled:
        torch._dynamo.reset()  # as above
        found = at(torch.compile(block, fullgraph=True)(padded.detach(), mask), present)
        _compare("outputs of a compiled block", found, outputs, 10.0 * tolerance)
    if isinstance(block, nn.Module):
        exact, x = deepcopy(block).double(), x.double()
        outputs = exact(x)
        _compare(f"{kind} in float64", exact(x[:, order]), at(outputs, order), _ROUNDING)
        padded = torch.full((5, 9, num_features), math.nan).double()
        padded[:, present] = x
        found = at(exact(padded, mask), present)
        _compare("outputs with padding in float64", found, outputs, _ROUNDING)
    if not equivariant:
        _compare("outputs of sets of padding and of empty ones", of_padding, empty, tolerance)


def check_axial_block(
    make: Callable[[], nn.Module],
    in_channels: int,
    *,
    size: int | None = None,
    seed: int = 0,
    tolerance: float = 1e-5,
) -> None:
    """Check a block that maps fields of any number of axes to fields or to tensors.

    Permuting the axes must permute the outputs or leave them unchanged, for one to four axes of
    different sizes with the same parameters, and in float64 up to rounding. A symmetric image must
    give a symmetric output, changes along each axis must affect the outputs, gradients must be
    finite, and a field must have the same outputs alone as in a batch.

    :param make: a function that creates the block, whose inputs are ``(batch, *spatial,
        in_channels)``.
    :param int in_channels: number of channels of a field.
    :param int size: size of each axis, for a block that accepts no other size.
    :param int seed: seed of fields and parameters.
    :param float tolerance: allowed difference, relative to the size of the values.
    :raises AssertionError: if a check fails; the message says which, and by how much.

    Example::

        >>> from pyro_ext.nn.axial import AxialConv
        >>> check_axial_block(lambda: AxialConv(2, 4), 2)
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        block = make()
        image = torch.randn(2, size or 6, size or 6, in_channels)
    exact = deepcopy(block).double()
    options: dict[str, Any] = {"seed": seed, "tolerance": tolerance}
    for sizes in ((7,), (5, 7), (4, 5, 6), (3, 4, 5, 3)):
        shape = (2, *(sizes if size is None else [size] * len(sizes)), in_channels)
        check_axis_equivariance(block, shape, **options)
        check_axis_equivariance(exact, shape, dtype=torch.float64, seed=seed, tolerance=_ROUNDING)
        field = image.new_zeros(shape).requires_grad_()
        outputs = block(field)
        _compare("a field alone", block(field[:1]), outputs[:1], tolerance)
        (gradient,) = torch.autograd.grad(outputs.square().sum(), field)
        assert bool(gradient.isfinite().all()), f"gradients in a field of zeros are {gradient}"
    symmetric = image + image.transpose(1, 2)
    found = block(symmetric)
    if found.dim() == 4:
        _compare("outputs of a symmetric image", found.transpose(1, 2), found, tolerance)
    for axis in (1, 2):
        moved = image.roll(1, axis) + image
        assert not torch.allclose(block(moved), block(image)), f"axis {axis} does not count"
