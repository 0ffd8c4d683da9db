"""Names of dimensions, and the labeled object that ArviZ works with."""

import importlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext._version import __version__
from pyro_ext.posterior.draws import Arrays, to_array
from pyro_ext.potential import Plate, Site

_SAMPLE_DIMS = ("chain", "draw")
_DATA = ("observed_data", "constant_data")
_PRIOR = ("prior", "prior_predictive")
_OBSERVATIONS = ("log_likelihood", "observed_data", "posterior_predictive", "prior_predictive")
_RESERVED = {*_SAMPLE_DIMS, "sample"}  # ArviZ stacks chains and draws into a dimension "sample"
_ATTRIBUTES = {"inference_library": "pyro_ext", "inference_library_version": __version__}


def label(
    groups: Mapping[str, Arrays],
    sites: Mapping[str, Site],
    coords: Mapping[str, Any] | None,
    dims: Mapping[str, Sequence[str | None]] | None,
    *,
    partitions: Collection[str] = (),
    points: Mapping[str, npt.NDArray[np.bool_]] = MappingProxyType({}),
    chains: Sequence[int] | None = None,
) -> Any:
    """Name the dimensions of arrays and put them into the object of the ArviZ that is installed."""
    groups = {group: arrays for group, arrays in groups.items() if arrays}
    given = _checked_dims(dims, {*sites, *(name for arrays in groups.values() for name in arrays)})
    renamed = _plate_dims(groups, sites, partitions)
    labels = _checked_coords(coords, renamed)
    names = {}
    for group, arrays in groups.items():
        # Statistics are not sites, even if they share a name.
        unnamed = arrays.keys() - set(partitions) if group == "sample_stats" else set()
        names[group] = {
            name: _names(group, name, array.shape, None, (), renamed)
            if name in unnamed
            else _names(group, name, array.shape, sites.get(name), given.get(name, ()), renamed)
            for name, array in arrays.items()
        }
        _check_group(group, arrays, names[group], labels)
    numbers = {} if chains is None else {"chain": np.asarray(chains, dtype=np.int64)}
    datasets = {}
    for group, arrays in groups.items():
        kept, positions = _keep_points(group, arrays, names[group], labels, points)
        chosen = labels if group in _PRIOR else numbers | labels
        if kept:
            datasets[group] = _dataset(group, kept, names[group], chosen).assign_coords(positions)
    if _is_version_1():
        return importlib.import_module("xarray").DataTree.from_dict(datasets)
    return _arviz().InferenceData(**datasets)


def _keep_points(
    group: str,
    arrays: Arrays,
    names: dict[str, list[str]],
    labels: Mapping[str, Any],
    points: Mapping[str, npt.NDArray[np.bool_]],
) -> tuple[Arrays, dict[str, Any]]:
    """Lay the points of observed variables that no mask hides along one dimension."""
    if group not in _OBSERVATIONS:
        return arrays, {}
    first = len(_sample_dims(group))
    kept, coordinates = {}, {}
    for name, array in arrays.items():
        chosen = points.get(name)
        if chosen is None or chosen.all():
            kept[name] = array
        elif chosen.any():
            last, dim = first + chosen.ndim, _free(f"{name}_observation", arrays)
            kept[name] = array[(slice(None),) * first + (chosen,)]
            for old, index in zip(names[name][first:last], np.nonzero(chosen), strict=True):
                label_of = np.asarray(labels[old])[index] if old in labels else index
                of_old = _free(f"{name}_{old.removeprefix(f'{name}_')}", arrays)
                coordinates[of_old] = (dim, label_of)
            names[name] = [*names[name][:first], dim, *names[name][last:]]
    return kept, coordinates


def _free(name: str, taken: Collection[str]) -> str:
    """The name, or one with underscores that is not taken."""
    while name in taken:
        name += "_"
    return name


def _dataset(
    group: str, arrays: Arrays, dims: Mapping[str, list[str]], coords: Mapping[str, Any]
) -> Any:
    options: dict[str, Any] = {"default_dims": []}
    if _is_version_1():
        options = {"sample_dims": _sample_dims(group), "check_conventions": False}
    return _arviz().dict_to_dataset(
        arrays, attrs=_ATTRIBUTES, coords=dict(coords), dims=dict(dims), **options
    )


def _arviz() -> Any:
    return importlib.import_module("arviz")


def _is_version_1() -> bool:
    return int(_arviz().__version__.split(".")[0]) >= 1


def _sample_dims(group: str) -> list[str]:
    return [] if group in _DATA else list(_SAMPLE_DIMS)


def _names(
    group: str,
    variable: str,
    shape: tuple[int, ...],
    site: Site | None,
    given: Sequence[str | None],
    renamed: Mapping[str, str],
) -> list[str]:
    """Names of all dimensions of a variable: the caller's, else plates, else numbers."""
    sampled = _sample_dims(group)
    shape = shape[len(sampled) :]
    names: list[str | None] = [None] * len(shape)
    if group == "log_likelihood":
        given = given[: len(shape)]  # an observation has one log likelihood, whatever its event
    if len(given) > len(shape):
        raise ValueError(
            f"dims[{variable!r}] has {len(given)} names {list(given)}, but {variable!r} in "
            f"{group} has the shape {shape} after chains and draws"
        )
    if site is not None:
        event_dim = 0 if group == "log_likelihood" else site.event_dim
        for position, plate in _plate_positions(shape, site.plates, event_dim):
            names[position] = renamed.get(plate.name, plate.name)
    for position, name in enumerate(given):
        names[position] = names[position] if name is None else name
    numbers = iter(range(len(shape)))
    return sampled + [f"{variable}_dim_{next(numbers)}" if name is None else name for name in names]


def _plate_positions(
    shape: tuple[int, ...], plates: Iterable[Plate], event_dim: int
) -> Iterable[tuple[int, Plate]]:
    """Find the positions of plates in a shape."""
    for plate in plates:
        position = len(shape) - event_dim + (plate.dim or 0)
        # Pyro gives a plate without a size the size -1.
        if 0 <= position < len(shape) and plate.size in (shape[position], -1):
            yield position, plate


def _plate_dims(
    groups: Mapping[str, Arrays], sites: Mapping[str, Site], partitions: Collection[str]
) -> dict[str, str]:
    """Other names for plates that are called as a variable, which no dataset could hold."""
    taken = _RESERVED.union(
        partitions, *(groups[group] for group in groups if group != "sample_stats")
    )
    renamed = {}
    for plate in {plate.name for site in sites.values() for plate in site.plates} & taken:
        renamed[plate] = _free(f"{plate}_dim", taken)
    return renamed


def _checked_dims(dims: Any, variables: set[str]) -> dict[str, list[str | None]]:
    if dims is None:
        return {}
    checks.mapping("dims", dims, "a dict of lists of names by variable")
    if unknown := sorted(set(dims) - variables):
        raise ValueError(f"dims names {unknown}, but the variables are {sorted(variables)}")
    for variable, names in dims.items():
        fits = isinstance(names, Sequence) and not isinstance(names, str)
        if not fits or not all(name is None or isinstance(name, str) for name in names):
            raise TypeError(
                f"dims[{variable!r}] must be a list of names (or None to keep the existing name), "
                f"got {names!r:.80}"
            )
        if wrong := [name for name in names if name in _RESERVED]:
            raise ValueError(
                f"dims[{variable!r}] must not name {wrong}: the dimensions of chains and draws "
                "are added automatically"
            )
    return {variable: list(names) for variable, names in dims.items()}


def _checked_coords(coords: Any, renamed: Mapping[str, str]) -> dict[str, Any]:
    if coords is None:
        return {}
    checks.mapping("coords", coords, "a dict of labels by dimension")
    labels = {}
    for name, values in coords.items():
        argument = f"coords[{name!r}]"
        if isinstance(values, Tensor):
            values = to_array(values, argument)
        listed = checks.sequence(argument, values, "a list of labels", 0)
        array = np.asarray(values if hasattr(values, "__array__") else listed)
        if array.ndim != 1:
            raise ValueError(f"{argument} must be a list of labels, got {values!r:.80}")
        labels[renamed.get(name, name)] = array
    return labels


def _check_group(
    group: str, arrays: Arrays, dims: Mapping[str, list[str]], coords: Mapping[str, Any]
) -> None:
    """Raise where the variables of a group do not make a dataset."""
    first: dict[str, tuple[int, str]] = {
        name: (len(labels), f"coords[{name!r}]") for name, labels in coords.items()
    }
    for variable, names in dims.items():
        if len(set(names)) < len(names):
            raise ValueError(f"{variable!r} in {group} has the same dimension twice: {names}")
        for name, size in zip(names, arrays[variable].shape, strict=True):
            if name in arrays:
                raise ValueError(
                    f"dims[{variable!r}] names {name!r}, which is a variable of {group} itself; "
                    "give the dimension another name"
                )
            known, where = first.setdefault(name, (size, repr(variable)))
            if known != size:
                raise ValueError(
                    f"dimension {name!r} has size {size} in {variable!r} of {group}, but "
                    f"{known} in {where}"
                )
