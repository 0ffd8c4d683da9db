"""Log likelihoods of single observations, with the discrete sites that draws lack summed out."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from pyro.ops.packed import pack
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor
from torch.distributions import constraints

from pyro_ext.potential.enumeration import contract, sum_out, without_mask
from pyro_ext.potential.evaluation import (
    Choice,
    Evaluation,
    Record,
    from_constrained,
    without_validation,
)
from pyro_ext.potential.model_at_values import ModelAtValues
from pyro_ext.potential.structure import Site


class EnumeratedLikelihood:
    r"""Log likelihood of each observation, with the discrete sites that draws lack summed out.

    Sites that hang together by discrete ones have a likelihood together, for each element of the
    plates around all of them: :math:`\log \sum_z p(z, \theta, x) - \log \sum_z p(z, \theta)`, with
    the terms of these sites alone. It is that of the observed site where there is one, with these
    plates; else it has the name of the innermost of these plates, with ``"_joint"``.
    """

    def __init__(self, whole: ModelAtValues, given: Collection[str]) -> None:
        if not whole.subsampled_plates:
            sum_out(whole.model, *whole.args, **whole.kwargs)  # raises where they cannot be
        self._whole = whole
        self._layout = whole.values_layout.part(given)
        self._function = whole.batched(self._evaluate, self._example)
        flat, *indices = self._example()
        found, _ = self._marginals(flat, indices)
        self.sites: dict[str, Site] = {}
        """Site of each likelihood."""
        self.members: dict[str, tuple[str, ...]] = {}
        """Observed sites that each likelihood is of, by its name."""
        self.left_out: list[str] = []
        """Observed sites whose likelihood is that of all of the data together."""
        for marginal in found:
            name = self._name(marginal)
            if name is None:
                self.left_out += marginal.sites
                continue
            self.members[name] = self.members.get(name, ()) + marginal.sites
            plates = [whole.structure.plates[plate] for plate in marginal.plates]
            numbered = [replace(p, dim=i - len(plates)) for i, p in enumerate(plates)]
            self.sites[name] = whole.observed_sites.get(name) or Site(
                name=name,
                shape=torch.Size(plate.size for plate in plates),
                support=constraints.real,
                event_dim=0,
                plates=tuple(numbered),
                unconstrained_shape=torch.Size(),
                dtype=marginal.value.dtype,
                device=marginal.value.device,
            )
        in_groups = {name for marginal in found for name in marginal.sites}
        for name, site in whole.observed_sites.items():
            if name not in in_groups:
                self.sites[name], self.members[name] = site, (name,)

    def __call__(self, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Log likelihoods at given latent values.

        Shapes: samples (*leading, *event) each; returns (*leading, *batch), over all of the data.
        """
        return self._whole.sweep(self._function, self._layout, samples, self.sites, False)

    def _name(self, marginal: "_Marginal") -> str | None:
        sites = self._whole.observed_sites
        first, *others = marginal.sites
        if not others and {plate.name for plate in sites[first].plates} == set(marginal.plates):
            return first if marginal.plates else None
        return f"{marginal.plates[-1]}_joint" if marginal.plates else None

    def _evaluate(self, flat: Tensor, *indices: Tensor) -> dict[str, Tensor]:
        found, rest = self._marginals(flat, indices)
        result: dict[str, Tensor] = {}
        for marginal in found:
            name = self._name(marginal)
            if name is not None and name in self._whole.observed_sites:
                site = self._whole.observed_sites[name]
                batch = rest[name].shape[-(len(site.shape) - site.event_dim) :]
                result[name] = marginal.value.reshape(batch)
            elif name is not None:
                result[name] = result.get(name, 0.0) + marginal.value
        return result | {name: rest[name] for name in self.sites if name not in result}

    def _marginals(
        self, flat: Tensor, indices: Sequence[Tensor]
    ) -> tuple[list["_Marginal"], dict[str, Tensor]]:
        whole = self._whole
        by_plate = zip((plate.name for plate in whole.subsampled_plates), indices, strict=True)
        elements = {**whole.whole_indices, **dict(by_plate)}
        choice = _enumerating(from_constrained(self._layout.unflatten(flat), elements))
        sites = (*whole.sites.values(), *whole.observed_sites.values(), *whole.factors.values())
        depth = max(len(site.shape) - site.event_dim for site in sites)
        recorder = TraceMessenger()
        handlers = [EnumMessenger(first_available_dim=-1 - depth), recorder]
        evaluation = Evaluation(choice, elements)
        records = evaluation.run(whole.model, whole.args, whole.kwargs, around=handlers)
        return _marginals(records, recorder.trace, depth, whole.observed_sites)

    def _example(self) -> list[Tensor]:
        flat, *indices = self._whole.example()
        values = self._whole.values_layout.unflatten(flat)
        return [self._layout.flatten(values), *indices]


class _Marginal(NamedTuple):
    """Log likelihood of observed sites for each element of plates, in the order of its shape."""

    sites: tuple[str, ...]
    plates: tuple[str, ...]
    value: Tensor


def _marginals(
    records: Mapping[str, Record], trace: Any, depth: int, observed: Collection[str]
) -> tuple[list[_Marginal], dict[str, Tensor]]:
    """Likelihoods with discrete sites summed out, and log densities of all observed sites."""
    trace.symbolize_dims()
    symbols, dims = trace.plate_to_symbol, trace.symbol_to_dim
    terms: dict[str, Any] = {}
    rest = {}
    with without_validation():
        for name, record in records.items():
            if not record.has_density:
                continue
            if trace.nodes[name]["infer"].get("_enumerate_dim") is not None:
                record = without_mask(record)
            log_prob = record.masked_log_prob()
            shape = torch.broadcast_shapes(log_prob.shape, record.fn.batch_shape)
            if name in observed:
                rest[name] = log_prob.expand(shape)
            if any(size > 1 for size in shape[: max(0, len(shape) - depth)]):
                # A copy, since its dimensions are named on the tensor itself.
                terms[name] = pack(log_prob + 0.0, trace.nodes[name]["infer"]["_dim_to_symbol"])

    plates = {
        name: frozenset(symbols[frame.name] for frame in records[name].frames if frame.vectorized)
        for name in terms
    }
    sizes = {symbols[f.name]: f.size for r in records.values() for f in r.frames if f.vectorized}
    summed = {symbol for term in terms.values() for symbol in term._pyro_dims} - set(sizes)
    names = {symbol: name for name, symbol in symbols.items()}
    result: list[_Marginal] = []
    in_loops: dict[tuple[str, int], list[_Marginal]] = {}
    for group in _connected(terms, summed):
        in_group = tuple(name for name in group if name in observed)
        if not in_group:
            continue
        common = frozenset.intersection(*(plates[name] for name in group))
        order = "".join(sorted(common, key=lambda symbol: dims[symbol]))
        value = contract({n: terms[n] for n in group}, plates, summed, common, sizes, order)
        others = {name: terms[name] for name in group if name not in observed}
        value = value - contract(others, plates, summed, common, sizes, order)
        marginal = _Marginal(in_group, tuple(names[symbol] for symbol in order), value)
        loops = [frame for frame in records[group[0]].frames if not frame.vectorized]
        loops = [f for f in loops if not order and all(f in records[n].frames for n in group)]
        if loops:
            in_loops.setdefault((loops[-1].name, loops[-1].size), []).append(marginal)
        else:
            result.append(marginal)
    for (name, size), parts in in_loops.items():
        # One for each turn of a sequential plate are those of its elements.
        whole = len(parts) == size
        members = tuple(site for part in parts for site in part.sites)
        value = torch.stack([part.value for part in parts])
        result.append(_Marginal(members, (name,) if whole else (), value if whole else value.sum()))
    return result, rest


def _enumerating(given: Choice) -> Choice:
    """Have sites without a value enumerated."""

    def choose(msg: Any) -> Any:
        choice = given(msg)
        lacks = choice is None and msg["fn"].has_enumerate_support
        msg["infer"]["enumerate"] = "parallel" if lacks else None
        return choice

    return choose


def _connected(terms: Mapping[str, Any], summed: set[str]) -> list[list[str]]:
    """Names of terms that share discrete sites, directly or by others."""
    groups: list[tuple[set[str], list[str]]] = []
    for name, term in terms.items():
        symbols, members = set(term._pyro_dims) & summed, [name]
        for group in [group for group in groups if group[0] & symbols]:
            groups.remove(group)
            symbols |= group[0]
            members = group[1] + members
        groups.append((symbols, members))
    return [members for _, members in groups]
