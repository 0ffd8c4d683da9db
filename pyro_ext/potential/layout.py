"""The flat vector in which a chain's parameters travel."""

import math
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from pyro_ext._lib import checks


class Layout:
    """Order, shapes and types of named parameters inside one flat vector.

    :param Mapping shapes: event shape of each parameter, by name.
    :param Mapping dtypes: floating type of each parameter, by name.
    :param torch.device device: device of the vector.

    Example::

        >>> layout = Layout({"a": torch.Size([2]), "b": torch.Size([])}, {}, torch.device("cpu"))
        >>> layout.flatten({"a": torch.ones(4, 2), "b": torch.zeros(4)}).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        shapes: Mapping[str, torch.Size],
        dtypes: Mapping[str, torch.dtype],
        device: torch.device,
    ) -> None:
        self.shapes = dict(shapes)
        self.dtypes = {name: dtypes.get(name, torch.get_default_dtype()) for name in shapes}
        self.device = device
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.size = sum(self.sizes)
        self.dtype = torch.get_default_dtype()
        for position, dtype in enumerate(self.dtypes.values()):
            self.dtype = dtype if position == 0 else torch.promote_types(self.dtype, dtype)

    @classmethod
    def of(cls, params: Mapping[str, Tensor], num_leading: int = 0) -> "Layout":
        """Layout of parameters, whose shapes have leading dimensions before those of the event."""
        device = next(iter(params.values())).device
        shapes = {name: value.shape[num_leading:] for name, value in params.items()}
        return cls(shapes, {name: value.dtype for name, value in params.items()}, device)

    def part(self, names: Collection[str]) -> "Layout":
        """Layout of some of the parameters."""
        shapes = {name: shape for name, shape in self.shapes.items() if name in names}
        return Layout(shapes, self.dtypes, self.device)

    def columns(self, name: str) -> range:
        """Columns of a parameter in the flat vector."""
        position = list(self.shapes).index(name)
        start = sum(self.sizes[:position])
        return range(start, start + self.sizes[position])

    def flatten(self, params: Mapping[str, Tensor]) -> Tensor:
        """Join named parameters. **Shape:** ``(*batch, *event)`` each to ``(*batch, size)``."""
        parts = []
        for name, shape in self.shapes.items():
            value = params[name]
            batch = value.shape[: value.dim() - len(shape)]
            parts.append(value.reshape(*batch, math.prod(shape)).to(self.dtype))
        return torch.cat(parts, -1)

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Part a flat vector into named parameters, the inverse of :meth:`flatten`."""
        pieces = flat.split(self.sizes, -1)
        return {
            name: piece.reshape(flat.shape[:-1] + shape).to(self.dtypes[name])
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    def check(self, params: Mapping[str, Tensor], argument: str) -> int:
        """Check names, shapes and types of parameters with a leading chain dimension."""
        checks.mapping(argument, params, "a dict of tensors by site")
        if set(params) != set(self.shapes):
            raise ValueError(
                f"{argument} has the sites {sorted(params)}, but the model has "
                f"{sorted(self.shapes)}"
            )
        for name, shape in self.shapes.items():
            value = params[name]
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise TypeError(
                    f"{argument}[{name!r}] must be a floating tensor, got {value!r:.80}"
                )
            if value.dim() != len(shape) + 1 or value.shape[1:] != shape:
                raise ValueError(
                    f"{argument}[{name!r}] has shape {tuple(value.shape)}, wanted (num_chains, "
                    f"*{tuple(shape)})"
                )
        return self.check_leading(params, argument)[0]

    def check_leading(self, values: Mapping[str, Tensor], argument: str) -> torch.Size:
        """Check shapes of parameters with any leading dimensions; other names are passed over."""
        checks.mapping(argument, values, "a dict of tensors by site")
        if missing := set(self.shapes) - set(values):
            raise ValueError(
                f"{argument} lacks the latent sites {sorted(missing)}, got {sorted(values)}"
            )
        leading: torch.Size | None = None
        for name, shape in self.shapes.items():
            checks.instance(f"{argument}[{name!r}]", values[name], Tensor, "a tensor")
            whole = values[name].shape
            own = whole[: len(whole) - len(shape)]
            if len(whole) < len(shape) or whole[len(own) :] != shape:
                raise ValueError(
                    f"{argument}[{name!r}] has shape {tuple(whole)}, wanted (*leading, "
                    f"*{tuple(shape)})"
                )
            if leading not in (None, own):
                raise ValueError(
                    f"{argument}[{name!r}] has the leading dimensions {tuple(own)}, the sites "
                    f"before it {tuple(leading or ())}"
                )
            leading = own
        assert leading is not None
        return leading

    def expand(self, value: float | Mapping[str, float | Tensor], argument: str) -> Tensor:
        """One number per element of the flat vector from a number or a number per site.

        :param value: a number for all sites, or numbers by shell-style pattern of site names, the
            first that fits counts; ``"default"`` names the rest. In place of a number a tensor of
            the site's unconstrained shape gives one for each element.
        :returns: **Shape:** ``(size,)``.
        """
        if not isinstance(value, Mapping):
            return torch.full((self.size,), float(value), dtype=self.dtype, device=self.device)
        patterns = [pattern for pattern in value if pattern != "default"]
        for pattern in patterns:
            if not any(_fits(name, pattern) for name in self.shapes):
                raise ValueError(
                    f"{argument} names {pattern!r}, which fits none of the sites "
                    f"{list(self.shapes)}"
                )
        pieces = []
        for name, shape in self.shapes.items():
            fitting = [pattern for pattern in patterns if _fits(name, pattern)]
            key = fitting[0] if fitting else "default"
            if key not in value:
                raise ValueError(
                    f"{argument} has no entry for site {name!r} and no 'default': {dict(value)}"
                )
            numbers = torch.as_tensor(value[key], dtype=self.dtype)
            if numbers.dim() > 0 and numbers.shape != shape:
                raise ValueError(
                    f"{argument}[{key!r}] must be a number or have the unconstrained shape "
                    f"{tuple(shape)} of {name!r}, got {tuple(numbers.shape)}"
                )
            pieces.append(numbers.expand(shape).reshape(-1))
        return torch.cat(pieces).to(self.device)


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)
