"""A Pyro model at its data, at given values of its latent sites."""

import contextlib
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import torch
from pyro.distributions import is_validation_enabled
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_ext._lib import checks
from pyro_ext._lib.row_draws import drawn_over_rows
from pyro_ext.potential.arguments import as_tensors, named_arguments
from pyro_ext.potential.batched import Backend, BatchedFunction, check_backend
from pyro_ext.potential.graph_capture import Fallback
from pyro_ext.potential.layout import Layout
from pyro_ext.potential.runner import ModelRunner, draw_from_prior
from pyro_ext.potential.structure import Plate, Site, Structure, assemble
from pyro_ext.random import fresh_seed


class ModelAtValues:
    """A Pyro model at its data, evaluated at given values of its latent sites, discrete ones too.

    :param model: a Pyro model.
    :param args: positional arguments of the model.
    :param str backend: as of :class:`Potential`.
    :param kwargs: keyword arguments of the model.
    """

    _is_quiet = True  # it runs only once, so that hints about its speed do not matter

    def __init__(
        self, model: Callable[..., Any], *args: Any, backend: Backend = "trace", **kwargs: Any
    ) -> None:
        if not callable(model):
            raise TypeError(f"model must be callable, got {model!r:.80}")
        check_backend(backend)
        args, kwargs = as_tensors(model, args, kwargs)
        self.model = model
        self.args = args
        self.kwargs = kwargs
        leaves = pytree.tree_leaves((args, kwargs))
        self._data = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if isinstance(model, torch.nn.Module):
            self._data += [*model.parameters(), *model.buffers()]
        with torch.random.fork_rng(), named_arguments(model, args, kwargs):
            torch.manual_seed(0)
            self._runner = runner = ModelRunner(model, args, kwargs)
        # What runs once in a while is not worth compiling.
        self._plain: Backend = "trace" if backend == "compile" else backend
        self._fallback = Fallback(self._is_quiet)
        self._num_examples = 0
        self._functions = {
            kind: self.batched(function, self.example)
            for kind, function in (
                ("deterministic", runner.deterministic),
                ("pointwise", runner.pointwise),
                ("counted", runner.counted),
            )
        }

    # What the model is -------------------------------------------------------------------------

    @property
    def structure(self) -> Structure:
        """Plates and sites of the model."""
        return self._runner.structure

    @property
    def sites(self) -> Mapping[str, Site]:
        """The latent sites by name, each with its shape over all of the data and its support."""
        return MappingProxyType(dict(self._runner.structure.latents))

    @property
    def observed_sites(self) -> Mapping[str, Site]:
        """The observed sites by name."""
        return MappingProxyType(dict(self._runner.structure.observed))

    @property
    def factors(self) -> Mapping[str, Site]:
        """The ``pyro.factor`` statements by name."""
        return MappingProxyType(dict(self._runner.structure.factors))

    @property
    def deterministic_sites(self) -> Mapping[str, Site]:
        """The ``pyro.deterministic`` statements by name."""
        return MappingProxyType(dict(self._runner.structure.deterministic))

    @property
    def whole_indices(self) -> Mapping[str, Any]:
        """Elements of each plate that takes no subsample, by its name."""
        return MappingProxyType(dict(self._runner.whole_indices))

    @property
    def values_layout(self) -> Layout:
        """Order of the latent sites in a flat vector of their values."""
        return self._runner.constrained

    @property
    def subsampled_plates(self) -> tuple[Plate, ...]:
        """The plates that take a subsample, in the order of the model."""
        return self._runner.plates

    # What follows from posterior draws -----------------------------------------------------------

    def deterministic(self, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of the ``pyro.deterministic`` statements at given latent values.

        :param Mapping samples: constrained latent values. **Shape:** ``(*leading, *event)`` each.
        :returns: **Shape:** ``(*leading, *event)`` each, over all of the data.
        """
        sites = self.deterministic_sites
        return self._swept("deterministic", samples, sites)

    def log_likelihood(self, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Log likelihood of each observation at given latent values, without any scale.

        It is zero where an observation is masked.

        :param Mapping samples: constrained latent values. **Shape:** ``(*leading, *event)`` each.
        :returns: by observed site. **Shape:** ``(*leading, *batch)``, over all of the data.
        """
        sites = self.observed_sites
        return self._swept("pointwise", samples, sites, has_event=False)

    def counted(self, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return masks of the elements that count at masked observed sites, given latent values.

        :param Mapping samples: constrained latent values. **Shape:** ``(*leading, *event)`` each.
        :returns: by observed site that has a mask. **Shape:** ``(*leading, *event)``, over all of
            the data.
        """
        sites = {name: site for name, site in self.observed_sites.items() if site.is_masked}
        return self._swept("counted", samples, sites)

    def predictive(
        self,
        samples: Mapping[str, Tensor],
        seed: int | None = None,
        sites: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        """Draw new values of the observed sites at given latent values.

        :param Mapping samples: constrained latent values. **Shape:** ``(*leading, *event)`` each.
        :param int seed: seed of the draws; ``None`` takes one from PyTorch's generator.
        :param sites: names of the sites to draw, by default all; the others keep their values.
        :returns: by observed site. **Shape:** ``(*leading, *event)``, over all of the data.
        """
        self._check_sites(sites)
        flat, leading = self._flat(self._runner.constrained, samples, "samples")
        resample = True if sites is None else sites
        rows = self._rows(
            flat, seed, lambda values: self._runner.observed_at(values, resample=resample)
        )
        return {
            name: rows[name].reshape(*leading, *site.shape)
            for name, site in self.observed_sites.items()
            if sites is None or name in sites
        }

    def completed(
        self, samples: Mapping[str, Tensor], seed: int | None = None
    ) -> dict[str, Tensor]:
        """Draw the latent sites that are not given from their distributions given the others.

        :param Mapping samples: constrained latent values. **Shape:** ``(*leading, *event)`` each.
        :returns: all latent sites. **Shape:** ``(*leading, *event)`` each.
        """
        layout = self.values_layout.part(samples)
        flat, leading = self._flat(layout, samples, "samples")
        rows = self._rows(
            flat, seed, lambda values: self._runner.prior_draw(draw_from_prior, values), layout
        )
        return {name: value.reshape(*leading, *value.shape[1:]) for name, value in rows.items()}

    def prior(
        self, num_samples: int, seed: int | None = None, sites: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Draw latent and observed sites from the model, without looking at the observations.

        :param int num_samples: number of draws.
        :param int seed: seed of the draws; ``None`` takes one from PyTorch's generator.
        :param sites: names of the observed sites to draw, by default all.
        :returns: by site. **Shape:** ``(num_samples, *event)``, over all of the data.
        """
        checks.integer("num_samples", num_samples, 1)
        self._check_sites(sites)
        runner, resample = self._runner, True if sites is None else sites

        def draw(values: dict[str, Tensor]) -> dict[str, Tensor]:
            latents = runner.prior_draw(draw_from_prior)
            drawn = runner.observed_at(latents, resample=resample)
            return latents | {name: drawn[name] for name in (drawn if sites is None else sites)}

        return self._rows(torch.zeros(num_samples, 0), seed, draw, self.values_layout.part(()))

    def observations(self) -> dict[str, Tensor]:
        """Observed values by site, over all of the data; those of transformed sites as well.

        Values that the model computes from latent sites, such as the residuals of a prediction, are
        left out.
        """
        return self._runner.observations()

    def depended_on(self, names: Collection[str]) -> set[str]:
        """Return the observed sites among those named that the densities of other sites depend on.

        :param names: names of observed sites.
        """
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return {name for name in names if self._runner.is_depended_on(name)}

    # Helpers --------------------------------------------------------------------------------------

    def validate(self) -> None:
        """Raise where observed values lie outside the support, if Pyro's checks are switched on."""
        if is_validation_enabled():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self._runner.validate_observed()

    def batched(
        self, function: Callable[..., Any], example: Callable[[], list[Tensor]]
    ) -> BatchedFunction:
        """A function of one chain over many."""
        return BatchedFunction(function, example, self._plain, self._data, self._fallback)

    def example(self) -> list[Tensor]:
        """Random values and subsamples of one chain; they leave the global generator alone."""
        with torch.random.fork_rng():
            torch.manual_seed(self._num_examples)
            values = self._runner.typical_values()
        self._num_examples += 1
        generator = torch.Generator().manual_seed(self._num_examples)
        return [self._runner.constrained.flatten(values), *self._runner.random_indices(generator)]

    def _rows(
        self,
        flat: Tensor,
        seed: int | None,
        draw: Callable[[dict[str, Tensor]], dict[str, Tensor]],
        layout: Layout | None = None,
    ) -> dict[str, Tensor]:
        """Draw something at the values of each row. **Shape:** ``(num_rows, *event)`` each."""
        own = layout or self.values_layout
        seed = fresh_seed(seed)

        def drawn(row: Tensor) -> dict[str, Tensor]:
            return draw(own.unflatten(row))

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            with contextlib.suppress(Exception):
                return drawn_over_rows(drawn, flat)
            # One by one where the model, or a distribution in it, asks values in Python.
            torch.manual_seed(seed)
            rows = [drawn(row) for row in flat]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _swept(
        self,
        kind: str,
        samples: Mapping[str, Tensor],
        sites: Mapping[str, Site],
        has_event: bool = True,
    ) -> dict[str, Tensor]:
        return self.sweep(self._functions[kind], self.values_layout, samples, sites, has_event)

    def _check_sites(self, sites: Collection[str] | None) -> None:
        """Check that names are those of observed sites."""
        if sites is None:
            return
        for name in checks.sequence("sites", sites, "names of observed sites", 0, str):
            checks.choice("sites", name, self.observed_sites)

    def _flat(
        self, layout: Layout, values: Mapping[str, Tensor], argument: str
    ) -> tuple[Tensor, torch.Size]:
        values = checks.tensors(argument, values)
        leading = layout.check_leading(values, argument)
        return layout.flatten(values).reshape(-1, layout.size), leading

    def sweep(
        self,
        function: BatchedFunction,
        layout: Layout,
        values: Mapping[str, Tensor],
        sites: Mapping[str, Site],
        has_event: bool = True,
    ) -> dict[str, Tensor]:
        """Run a function of one chain over all draws and all of the data."""
        if not sites:
            return {}
        argument = "samples" if layout is not self._runner.unconstrained else "params"
        flat, leading = self._flat(layout, values, argument)
        event_dims = {name: site.event_dim * has_event for name, site in sites.items()}
        whole: dict[str, Tensor] = {}
        for block in self._runner.blocks():
            indices = [
                block.indices[plate.name].expand(len(flat), -1) for plate in self.subsampled_plates
            ]
            with torch.no_grad():
                part = function.over_any(flat, *indices)
            assemble(whole, part, block, sites, event_dims)
            if not any(site.is_subsampled for site in sites.values()):
                break
        return {name: value.reshape(leading + value.shape[1:]) for name, value in whole.items()}
