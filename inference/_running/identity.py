"""What a run is of: its model, data, kernel and versions, so that no other run continues it."""

import hashlib
import platform
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from pyro.infer import HMC
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_ext._version import __version__
from pyro_ext.potential import FunctionPotential, Potential

__all__ = ["data_identity", "differences", "kernel_identity", "model_identity", "versions"]

_HMC_SETTINGS = ("trajectory_length", "use_multinomial_sampling", "_max_tree_depth")
_ADAPTER_SETTINGS = (
    "_init_step_size",
    "adapt_step_size",
    "adapt_mass_matrix",
    "target_accept_prob",
    "dense_mass",
)
_TOLERANCE = 1e-5
_SPREAD = 0.1


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
    """Name, sites and plates of a model, and its log density at points that are always the same.

    The latter tells models apart that differ in a number somewhere inside.
    """
    result: dict[str, Any] = {"name": _describe(model)}
    if potential is None:
        return result
    layout = potential.layout
    generator = torch.Generator().manual_seed(0)
    noise = _SPREAD * torch.randn(2, layout.size, generator=generator, dtype=torch.float64)
    if isinstance(potential, Potential):
        for kind, sites in (("sites", potential.sites), ("observed", potential.observed_sites)):
            result[kind] = {
                name: f"{tuple(site.shape)} {site.support} {site.dtype}"
                for name, site in sites.items()
            }
        result["plates"] = {
            plate.name: [plate.size, plate.subsample_size] for plate in potential.subsampled_plates
        }
        start = layout.flatten(potential.init_chains(range(1), seed=0))
        points = layout.unflatten(start + noise.to(start))
        value = potential.full(points)
    else:
        result["sites"] = {name: str(tuple(shape)) for name, shape in layout.shapes.items()}
        value = potential.gradient(noise.to(layout.device, layout.dtype))[0]
    result["potential"] = [float(number) for number in value]
    return result


def data_identity(tree: object, name: str) -> dict[str, str]:
    """Shape, type and digest of each tensor or array in a nest of arguments.

    :param tree: the arguments.
    :param str name: how the caller names them.
    """
    leaves, _ = pytree.tree_flatten_with_path(tree)
    return {name + pytree.keystr(path): _describe(leaf) for path, leaf in leaves}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Say in which entries two descriptions differ.

    :param Mapping old: the description in a checkpoint.
    :param Mapping new: that of the run at hand.
    :param str prefix: where in the description we are.
    """
    result = []
    for key in dict.fromkeys([*old, *new]):
        place = f"{prefix}{key}"
        one, other = old.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            result += differences(one, other, f"{place}: ")
        elif not _same(one, other):
            result.append(f"{place} is {_short(one)} there and {_short(other)} here")
    return result


def _same(one: Any, other: Any) -> bool:
    both = (one, other)
    if all(isinstance(value, list) and len(value) == 2 for value in both) and any(
        isinstance(number, float) for value in both for number in value
    ):
        return bool(np.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True))
    return bool(one == other)


def _describe_setting(value: Any) -> Any:
    if isinstance(value, torch.nn.Module):
        # Networks inside a kernel decide on its draws, other than those of a model, whose
        # parameters may be sample sites.
        return {"type": type(value).__qualname__, **_describe(value.state_dict())}
    return _describe(value)


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
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
