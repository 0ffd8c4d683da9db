"""Identity of a run: its model, data, kernel and versions, so that only the same run resumes it."""

import hashlib
import platform
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any, TypeGuard

import numpy as np
import torch
from pyro.infer import HMC
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_ext._version import __version__
from pyro_ext.checkpoint import CheckpointError
from pyro_ext.posterior.fixed_points import (
    FixedPoint,
    Noise,
    PointOf,
    epsilon_of,
    fingerprint,
    function_at,
    model_at,
    points_of,
)
from pyro_ext.potential import FunctionPotential, Potential

Quantities = Mapping[str, Callable[[dict[str, Tensor]], Tensor]]
"""Functions of a draw that are recorded beside its sites."""

_HMC_SETTINGS = ("trajectory_length", "use_multinomial_sampling", "_max_tree_depth")
_ADAPTER_SETTINGS = (
    "_init_step_size",
    "adapt_step_size",
    "adapt_mass_matrix",
    "target_accept_prob",
    "dense_mass",
)
_WHOLE = (0.5, -0.5)  # scales of points at which all of the data are gone through
_FINGERPRINT = {"value", "tolerance", "not_finite"}


def versions() -> dict[str, str]:
    """Versions that draws may depend on."""
    return {
        "pyro_ext": __version__,
        "torch": version("torch"),
        "pyro-ppl": version("pyro-ppl"),
        "numpy": version("numpy"),
        "python": ".".join(platform.python_version_tuple()[:2]),
    }


def kernel_identity(kernel: MCMCKernel) -> dict[str, Any]:
    """Type and settings of a kernel."""
    settings: dict[str, Any] = {}
    if hasattr(kernel, "settings"):
        settings = kernel.settings()
    elif isinstance(kernel, HMC):
        settings = {name: getattr(kernel, name, None) for name in _HMC_SETTINGS}
        settings |= {name: getattr(kernel._adapter, name) for name in _ADAPTER_SETTINGS}
    described = {name.strip("_"): _describe_setting(value) for name, value in settings.items()}
    return {"type": type(kernel).__name__, **described}


def model_identity(
    model: Callable[..., Any] | None, potential: Potential | FunctionPotential | None
) -> dict[str, Any]:
    """Name, sites and plates of a model, and its log density over all of the data."""
    result: dict[str, Any] = {"name": _describe(model), "sites": {}}
    if potential is None:
        return result
    layout = potential.layout
    if not isinstance(potential, Potential):
        result["sites"] = {name: str(tuple(shape)) for name, shape in layout.shapes.items()}
        return result
    for kind, sites in (("sites", potential.sites), ("observed", potential.observed_sites)):
        result[kind] = {
            name: f"{tuple(site.shape)} {site.support} {site.dtype}" for name, site in sites.items()
        }
    result["plates"] = {
        plate.name: [plate.size, plate.subsample_size] for plate in potential.subsampled_plates
    }
    if potential.subsampled_plates:

        def whole(noise: Noise) -> FixedPoint:
            flat = noise("all sites", (1, layout.size)).to(layout.device, layout.dtype)
            return FixedPoint({"all": potential.full(layout.unflatten(flat))}, {})

        points = points_of(whole, _WHOLE)
        values = [None if point is None else point.terms["all"] for point in points]
        # Of sums over the data terms may cancel that are some ones each.
        scale = float(potential.data_size)
        epsilon = torch.finfo(layout.dtype).eps
        result["potential"] = fingerprint(values, epsilon, scale)
        result["observed values"] = {
            name: fingerprint([value], max(epsilon, epsilon_of([value])))
            for name, value in potential.observations().items()
        }
    return result


def density_identity(
    point_of: PointOf | None, quantities: Quantities
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Log densities, part by part, and recorded quantities, at points that are always the same."""
    points = [] if point_of is None else points_of(point_of)
    found = [point for point in points if point is not None]
    known = [value for point in found for value in (*point.terms.values(), *point.values.values())]
    epsilon = epsilon_of(known)
    densities = {}
    for part in dict.fromkeys(name for point in found for name in point.terms):
        terms = [None if point is None else point.terms.get(part) for point in points]
        densities[part] = fingerprint(terms, epsilon)
    recorded = {}
    for name, function in quantities.items():
        values = function_at(function, points)
        recorded[name] = fingerprint(values, max(epsilon, epsilon_of(values)))
    return densities, recorded


def kernel_at(
    kernel: MCMCKernel,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    start: Mapping[str, Tensor] | None,
) -> PointOf | None:
    """Return a function that evaluates a kernel's target at a point, or ``None`` if unknown.

    A kernel may provide the function itself, by a method ``fixed_points``.
    """
    own = getattr(kernel, "fixed_points", None)
    if own is not None:
        point_of: PointOf = own(*args, **kwargs)
        return point_of
    model, function = getattr(kernel, "model", None), getattr(kernel, "potential_fn", None)
    if model is not None:
        return model_at(model, args, kwargs)
    if function is None or start is None:
        return None

    def function_point(noise: Noise) -> FixedPoint:
        values = {name: noise(name, value.shape).to(value) for name, value in start.items()}
        return FixedPoint({"potential_fn": function(values)}, values)

    return function_point


def data_identity(tree: object, name: str) -> dict[str, str]:
    """Shape, type and digest of each tensor or array in a nest of arguments."""
    leaves, _ = pytree.tree_flatten_with_path(tree)
    return {name + pytree.keystr(path): _describe(leaf) for path, leaf in leaves}


def function_identity(function: Any) -> dict[str, str]:
    """Name of a function, and a digest of its code and of the values that it was made with.

    These are numbers, strings, tensors, networks and functions among its constants, its defaults,
    what it closes over, and what it names of its module. Of all else only types and names count.
    """
    parts = repr(list(_parts_of(function, set())))
    return {"name": _describe(function), "code": _digest(np.frombuffer(parts.encode(), np.uint8))}


def continued(
    known: Mapping[str, Any] | None, identity: dict[str, Any], folder: str | Path
) -> dict[str, Any]:
    """Return the identity in the folder of a run, or ``identity`` if the folder is new.

    :raises CheckpointError: if the folder belongs to another run.
    """
    if known is None:
        return identity
    if found := differences(known["identity"], identity):
        raise CheckpointError(
            f"checkpoint={str(folder)!r} is of another run: {'; '.join(found)}. Continue with the "
            "same program, or name another folder"
        )
    own: dict[str, Any] = known["identity"]  # with the numbers as they were rounded at first
    return own


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Say in which entries two descriptions differ."""
    result = []
    for key in dict.fromkeys([*old, *new]):
        entry = f"{prefix}{key}"
        one, other = old.get(key), new.get(key)
        if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
            one, other = (dict(enumerate(values)) for values in (one, other))
        if _is_fingerprint(one) and _is_fingerprint(other):
            if (number := _first_difference(one, other)) is not None:
                there, here = _number(one, number), _number(other, number)
                result.append(f"{entry} at a fixed point is {there} there and {here} here")
        elif isinstance(one, Mapping) and isinstance(other, Mapping):
            result += differences(one, other, f"{entry}: ")
        elif one != other:
            result.append(f"{entry} is {_short(one)} there and {_short(other)} here")
    return result


def _parts_of(value: Any, seen: set[int]) -> Iterator[Any]:
    """Yield the parts that distinguish a function, or a value that it was made with."""
    if isinstance(value, partial):
        for part in (value.func, *value.args, *value.keywords.items()):
            yield from _parts_of(part, seen)
    elif isinstance(value, MethodType):
        yield from _parts_of(value.__func__, seen)
    elif isinstance(value, tuple):
        for part in value:
            yield from _parts_of(part, seen)
    elif isinstance(value, torch.nn.Module | Tensor | np.ndarray | bool | int | float | str | None):
        yield _describe_setting(value)
    elif not isinstance(value, FunctionType):
        yield type(value).__qualname__  # often a list that results are appended to
    elif id(value) not in seen:  # or a recursive function would not end
        seen.add(id(value))
        codes = [value.__code__]
        for code in codes:
            yield code.co_code.hex()
            yield code.co_names
            codes += [part for part in code.co_consts if isinstance(part, CodeType)]
            yield [repr(part) for part in code.co_consts if not isinstance(part, CodeType)]
        closed = [cell.cell_contents for cell in value.__closure__ or ()]
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).items()]
        known = value.__globals__
        for name in sorted({name for code in codes for name in code.co_names} & known.keys()):
            part = known[name]
            is_own = isinstance(part, FunctionType) and part.__globals__ is known
            if is_own or isinstance(part, bool | int | float | str | Tensor):
                closed.append(part)
        for part in (*defaults, *closed):
            yield from _parts_of(part, seen)


def _is_fingerprint(value: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping) and set(value) == _FINGERPRINT


def _first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> int | None:
    """The first point at which fingerprints differ by more than the rounding of both.

    Points where one of them raised are skipped: rounding may decide whether a matrix is singular.
    """
    for number, (a, b) in enumerate(zip(one["value"], other["value"], strict=True)):
        if a is None or b is None:
            continue
        tolerance = one["tolerance"][number] + other["tolerance"][number]
        if one["not_finite"][number] != other["not_finite"][number] or abs(a - b) > tolerance:
            return number
    return None


def _number(found: Mapping[str, Any], number: int) -> str:
    """A fingerprint at one point, for a message."""
    value, not_finite = found["value"][number], found["not_finite"][number]
    return f"{value:.9g}" + (f" and {not_finite} infinite or NaN" if not_finite else "")


def _describe_setting(value: Any) -> Any:
    if isinstance(value, torch.nn.Module):
        # Networks inside a kernel decide on its draws, other than those of a model, whose
        # parameters may be sample sites.
        return {"type": type(value).__qualname__, **_describe(value.state_dict())}
    return _describe(value)


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    text = "present" if _is_fingerprint(value) else text
    return text if len(text) <= 90 else text[:87] + "..."


def _describe(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        raw = value.reshape(-1).view(torch.uint8).numpy()
        return f"{value.dtype} {tuple(value.shape)} {_digest(raw)}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {_digest(np.ascontiguousarray(value))}"
    if isinstance(value, Mapping):
        return {str(name): _describe(item) for name, item in value.items()}
    if isinstance(value, partial):
        return f"partial of {_describe(value.func)}"
    if isinstance(value, torch.nn.Module) or not callable(value):
        # The default representation holds an address, which is another one each time.
        has_address = isinstance(value, torch.nn.Module) or " at 0x" in repr(value)
        return type(value).__qualname__ if has_address else repr(value)
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _digest(raw: Any) -> str:
    return hashlib.sha256(memoryview(raw).cast("B")).hexdigest()[:16]
