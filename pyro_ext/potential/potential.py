"""The potential of a Pyro model, or of a plain function of parameters, over many chains."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.potential.arguments import named_arguments
from pyro_ext.potential.batched import (
    Backend,
    BatchedFunction,
    RandomPoints,
    check_backend,
    version_of,
)
from pyro_ext.potential.evaluation import CHANGES_DATA, Evaluation, from_unconstrained, log_density
from pyro_ext.potential.graph_capture import Fallback, Gradient, PickedByNumber
from pyro_ext.potential.layout import Layout
from pyro_ext.potential.model_at_values import ModelAtValues
from pyro_ext.potential.model_checks import funnels
from pyro_ext.potential.runner import InitStrategy, init_to_suggested
from pyro_ext.potential.structure import Plate
from pyro_ext.random import fresh_seed, spawn_seed

_ROWS_PER_CALL = 64
_ENUMERABLE = "take a kernel that sums it out, such as pyro_ext.inference.NUTS"
_NOT_ENUMERABLE = (
    "draw it in a block of pyro_ext.inference.Gibbs, by PriorProposals; its values cannot be "
    "enumerated, so that no kernel sums it out"
)


class Potential(ModelAtValues):
    r"""Negative log joint density of a Pyro model, in unconstrained space, as a pure function.

    The model is one written for :class:`~pyro.infer.SVI` or :class:`~pyro.infer.MCMC`, unchanged.
    With latent values :math:`\theta = T(z)` and a subsample :math:`B` of the :math:`N` elements
    of a plate,

    .. math:: U(z) = -\log p(\theta) - \frac{N}{|B|} \sum_{i \in B} \log p(x_i | \theta)
              - \log |\det \partial T(z) / \partial z| ,

    a stochastic potential whose mean over subsamples is that of all of the data. A latent site
    inside a subsampled plate has a value for each element of the plate, and its terms are scaled
    as those of the observations there.

    :param model: a Pyro model with continuous latent sites.
    :param args: positional arguments of the model. Arrays and lists of numbers become tensors where
        it cannot run with them.
    :param str backend: how it runs. ``"eager"`` runs the model for one chain after the other;
        ``"trace"`` records it as a graph over all chains; ``"compile"`` compiles the graph, which
        takes a C++ compiler and, the first time, some seconds. All three give the same numbers.
    :param init_strategy: where the density is looked at to check it, as of :meth:`init`.
    :param kwargs: keyword arguments of the model.
    :raises ValueError: for a model without latent sites, a discrete latent site, a sequential plate
        that subsamples, a log density that is not finite at any of 100 points of the strategy, or
        one that depends on a latent site by numbers taken out of tensors, which no gradient goes
        through.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     with pyro.plate("data", len(x), subsample_size=10) as index:
        ...         pyro.sample("x", dist.Normal(0.0, scale), obs=x[index])
        >>> potential = Potential(model, torch.randn(100))
        >>> z = potential.init(num_chains=4, seed=0)
        >>> potential(z).shape, potential.constrain(z)["scale"].shape
        (torch.Size([4]), torch.Size([4]))
    """

    _is_quiet = False

    def __init__(
        self,
        model: Callable[..., Any],
        *args: Any,
        backend: Backend = "trace",
        init_strategy: InitStrategy = init_to_suggested,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, *args, backend=backend, **kwargs)
        checks.function("init_strategy", init_strategy)
        runner, data = self._runner, self._data
        for name, fn in runner.structure.discrete.items():
            kind = _ENUMERABLE if fn.has_enumerate_support else _NOT_ENUMERABLE
            raise ValueError(
                f"site {name!r} is a discrete latent variable ({type(fn).__name__}); a gradient "
                f"needs continuous ones: sum it out by hand, give it as an argument, or {kind}"
            )
        with torch.random.fork_rng(), named_arguments(model, self.args, self.kwargs):
            torch.manual_seed(0)
            self._start = runner.initial(init_strategy)
            has_nan = any(bool(leaf.isnan().any()) for leaf in data if leaf.is_floating_point())
            versions = [version_of(leaf) for leaf in data]
            runner.validate(self._start, whole=has_nan)
            if versions != [version_of(leaf) for leaf in data]:
                raise ValueError(CHANGES_DATA)
        self._points = RandomPoints(self._start)
        self._functions |= {
            kind: BatchedFunction(function, example, function_backend, data, self._fallback)
            for kind, function, example, function_backend in (
                ("value", runner.value, self._example, backend),
                ("gradient", Gradient(runner.value), self._example, backend),
                ("whole", Gradient(runner.weighted_value), self._weighted_example, self._plain),
                ("constrain", runner.constrain, self._example, self._plain),
            )
        }

    def take_given(
        self,
        values: dict[str, Tensor],
        names: Sequence[str],
        backend: Backend,
        draw: Callable[[], Mapping[str, Tensor]],
    ) -> None:
        """Let functions of the model take values that it reads from a dict as arguments.

        Without it, a record would hold the values as they were when it was made. :meth:`give` says
        what they are.

        :param dict values: what the model reads, of one chain.
        :param names: of the values that are to be arguments.
        :param backend: how potential and gradient run; other functions are not compiled.
        :param draw: gives other values, at which a record is compared with the model: what it has
            frozen of the first ones shows there.
        """
        number = len(names)

        def taking(function: Callable[..., Any]) -> Callable[..., Any]:
            def run(flat: Tensor, *rest: Tensor) -> Any:
                before = dict(values)
                values.update(zip(names, rest[len(rest) - number :], strict=True))
                try:
                    with PickedByNumber():
                        return function(flat, *rest[: len(rest) - number])
                finally:
                    values.update(before)

            return run

        def example() -> list[Tensor]:
            other = draw()
            return [*self._example(), *(other[name] for name in names)]

        def constrained_example() -> list[Tensor]:
            tensors = example()
            flat = taking(self._constrained)(*tensors)
            return [flat, *tensors[len(tensors) - number :]]

        runner, fallback = self._runner, Fallback(is_quiet=True)
        plain: Backend = "trace" if backend == "compile" else backend
        value = taking(runner.value)
        for kind, function, of, function_backend in (
            ("value", value, example, backend),
            ("gradient", Gradient(value), example, backend),
            ("constrain", taking(runner.constrain), example, plain),
            ("unconstrain", taking(runner.unconstrain), constrained_example, plain),
        ):
            self._functions[kind] = BatchedFunction(
                function, of, function_backend, self._data, fallback
            )
        self.give([values[name][None] for name in names])

    def give(self, given: Sequence[Tensor]) -> None:
        """Say what the values are that :meth:`take_given` has made arguments.

        :param Sequence given: the values, in the order of their names.
            **Shape:** ``(num_chains, *event)`` each, or ``(1, *event)`` where all chains have the
            same.
        """
        for kind in ("value", "gradient", "constrain", "unconstrain"):
            self._functions[kind].given = tuple(given)

    def _constrained(self, flat: Tensor, *indices: Tensor) -> Tensor:
        """Flat vector of the values of the latent sites of one chain."""
        return self._runner.constrained.flatten(self._runner.constrain(flat, *indices))

    # What the model is -------------------------------------------------------------------------

    @property
    def data_size(self) -> int:
        """Number of elements of the largest plate around an observed site or a factor."""
        return self._runner.structure.data_size

    @property
    def layout(self) -> Layout:
        """Order of the latent sites in a flat vector of unconstrained values."""
        return self._runner.unconstrained

    @property
    def gradient(self) -> BatchedFunction:
        """Potential and gradient of flat parameters and the subsamples, for kernels.

        It maps ``(num_chains, size)`` in the order of ``layout`` and, for each of
        ``subsampled_plates``, indices ``(num_chains, subsample_size)`` to the potentials
        ``(num_chains,)`` and gradients ``(num_chains, size)``.
        """
        return self._functions["gradient"]

    @property
    def value(self) -> BatchedFunction:
        """The same without the gradient, for kernels that need none: a much smaller graph."""
        return self._functions["value"]

    # The function ------------------------------------------------------------------------------

    def potential(
        self,
        params: Mapping[str, Tensor],
        subsample: Mapping[str, Tensor] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Potential of one chain: a pure function that runs the model.

        It can be differentiated and vectorized with :mod:`torch.func`.

        :param Mapping params: unconstrained value of each latent site. **Shape:** ``(*event)``.
        :param Mapping subsample: indices for each subsampled plate; one without an entry draws.
            **Shape:** ``(subsample_size,)``.
        :param args: arguments of the model instead of those given at construction.
        :param kwargs: the same by keyword.
        :returns: a scalar.
        """
        if missing := set(self.layout.shapes) - set(params):
            raise ValueError(f"params lacks the latent sites {sorted(missing)}")
        indices = dict(subsample or {})
        if not args and not kwargs:
            args, kwargs = self.args, self.kwargs
            indices = {**self._runner.whole_indices, **indices}
        evaluation = Evaluation(from_unconstrained(params, indices), indices)
        return -log_density(evaluation.run(self.model, args, kwargs))

    def __call__(
        self,
        params: Mapping[str, Tensor],
        subsample: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Potential of each chain, on a fresh minibatch where a plate subsamples.

        :param Mapping params: unconstrained values. **Shape:** ``(num_chains, *event)`` each.
        :param Mapping subsample: indices for each subsampled plate.
            **Shape:** ``(num_chains, subsample_size)``, or ``(subsample_size,)`` for all chains.
        :param torch.Generator generator: source of a fresh minibatch.
        :returns: **Shape:** ``(num_chains,)``.
        """
        num_chains = self.layout.check(params, "params")
        indices = self._indices(num_chains, subsample, generator)
        with torch.no_grad():
            value: Tensor = self._functions["value"](self.layout.flatten(params), *indices)
        return value

    def value_and_grad(
        self,
        params: Mapping[str, Tensor],
        subsample: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Potential and its gradient for each chain; arguments as for a plain call.

        :returns: potentials, **Shape:** ``(num_chains,)``, and gradients by site, shaped as
            ``params``.
        """
        num_chains = self.layout.check(params, "params")
        indices = self._indices(num_chains, subsample, generator)
        value, gradient = self.gradient(self.layout.flatten(params).detach(), *indices)
        return value, self.layout.unflatten(gradient)

    def full(self, params: Mapping[str, Tensor]) -> Tensor:
        """Potential of each chain over all of the data, subsample by subsample.

        :param Mapping params: unconstrained values. **Shape:** ``(num_chains, *event)`` each.
        :returns: **Shape:** ``(num_chains,)``.
        """
        return self.full_value_and_grad(params)[0]

    def full_value_and_grad(self, params: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Potential and its gradient for each chain over all of the data.

        :param Mapping params: unconstrained values. **Shape:** ``(num_chains, *event)`` each.
        :returns: potentials, **Shape:** ``(num_chains,)``, and gradients by site, shaped as
            ``params``.
        """
        num_chains = self.layout.check(params, "params")
        flat = self.layout.flatten(params).detach()
        value, gradient = flat.new_zeros(num_chains), torch.zeros_like(flat)
        for tensors in self._block_rows(max(1, _ROWS_PER_CALL // num_chains)):
            # Blocks side by side: one at a time would cost as much for each small one.
            num_blocks = len(tensors[0]) if tensors else 1
            rows = flat.repeat_interleave(num_blocks, 0)
            repeated = [tensor.repeat(num_chains, *[1] * (tensor.dim() - 1)) for tensor in tensors]
            function = self._functions["whole"]
            if len(rows) == 1:  # as in a search for a mode
                parts = function.over_one(rows, *repeated)
            else:
                parts = function.over_any(rows, *repeated)
            value += parts[0].reshape(num_chains, num_blocks).sum(1)
            gradient += parts[1].reshape(num_chains, num_blocks, -1).sum(1)
        return value, self.layout.unflatten(gradient)

    # Between the two spaces ----------------------------------------------------------------------

    def init(
        self,
        num_chains: int = 1,
        seed: int | None = None,
        init_strategy: InitStrategy = init_to_suggested,
    ) -> dict[str, Tensor]:
        """Initial unconstrained values with a finite potential.

        :param int num_chains: number of chains.
        :param int seed: a chain's values follow from the seed and its number; ``None`` takes one
            from PyTorch's generator.
        :param init_strategy: one of :mod:`pyro.infer.autoguide.initialization`; by default where a
            site asks for it, or the median of a few draws from the prior, which tames wide tails.
        :returns: **Shape:** ``(num_chains, *event)`` each.
        :raises ValueError: where no try gives a finite potential; it names the sites at fault.
        """
        checks.integer("num_chains", num_chains, 1)
        checks.function("init_strategy", init_strategy)
        return self.init_chains(range(num_chains), fresh_seed(seed), init_strategy)

    def init_chains(
        self, chains: Sequence[int], seed: int, init_strategy: InitStrategy = init_to_suggested
    ) -> dict[str, Tensor]:
        """Initial unconstrained values of the chains with the given numbers; see :meth:`init`."""
        rows = []
        with torch.random.fork_rng():
            for chain in chains:
                torch.manual_seed(spawn_seed(seed, chain, 1))
                rows.append(self._runner.initial(init_strategy))
        return self.layout.unflatten(torch.stack(rows))

    def constrain(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map unconstrained values to the supports of their sites.

        :param Mapping params: **Shape:** ``(*leading, *event)`` each.
        :returns: **Shape:** ``(*leading, *event)`` each, over all of the data.
        """
        return self.sweep(self._functions["constrain"], self.layout, params, self.sites)

    def samples(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map unconstrained values to what samplers keep: latent and deterministic sites.

        Deterministic sites in a plate that subsamples are left out: a draw sees a part of them.

        :param Mapping params: **Shape:** ``(*leading, *event)`` each.
        :returns: **Shape:** ``(*leading, *event)`` each, over all of the data.
        """
        samples, sites = self.constrain(params), self.deterministic_sites
        found = self.deterministic(samples).items()
        return samples | {name: value for name, value in found if not sites[name].is_subsampled}

    def unconstrain(self, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map values from the supports of their sites to unconstrained space.

        :param Mapping samples: latent values; other names are passed over.
            **Shape:** ``(*leading, *event)`` each.
        :returns: **Shape:** ``(*leading, *event)`` each.
        """
        flat, leading = self._flat(self._runner.constrained, samples, "samples")
        if (function := self._functions.get("unconstrain")) is not None:
            rows = function.interpreted(flat)
        else:
            rows = torch.stack([self._runner.unconstrain(row) for row in flat])
        return self.layout.unflatten(rows.reshape(*leading, self.layout.size))

    def funnels(self) -> dict[str, list[str]]:
        """Find latent sites whose scale depends on other latent sites.

        Where the data say little about such a site, it and its scale form a funnel, which chains
        hardly enter; ``pyro.infer.reparam.LocScaleReparam(0.0)`` removes it.

        :returns: names of the sites that the scale depends on, by name of the site.

        Example::

            >>> def model():
            ...     tau = pyro.sample("tau", dist.HalfNormal(1.0))
            ...     pyro.sample("effect", dist.Normal(0.0, tau))
            >>> Potential(model).funnels()
            {'effect': ['tau']}
        """
        with torch.random.fork_rng():
            by_plate = self._runner.by_plate(self._runner.random_indices())
            values = self.layout.unflatten(self._start)
            return funnels(partial(self._runner.run_at, by_plate), values)

    # Helpers --------------------------------------------------------------------------------------

    def _indices(
        self,
        num_chains: int,
        subsample: Mapping[str, Tensor] | None,
        generator: torch.Generator | None,
    ) -> list[Tensor]:
        if subsample is not None:
            checks.mapping("subsample", subsample, "a dict of indices by plate")
        if generator is not None:
            checks.instance("generator", generator, torch.Generator, "a torch.Generator or None")
        names = [plate.name for plate in self.subsampled_plates]
        if unknown := set(subsample or {}) - set(names):
            raise ValueError(
                f"subsample names {sorted(unknown)}, but the subsampled plates are {names}"
            )
        indices = []
        for plate in self.subsampled_plates:
            if subsample is None or plate.name not in subsample:
                rows = [self._runner.random_index(plate, generator) for _ in range(num_chains)]
                indices.append(torch.stack(rows))
                continue
            index = subsample[plate.name]
            wanted = ((num_chains, plate.subsample_size), (plate.subsample_size,))
            if not isinstance(index, Tensor) or index.dtype != torch.int64:
                raise TypeError(
                    f"subsample[{plate.name!r}] must be an int64 tensor, got {index!r:.80}"
                )
            if tuple(index.shape) not in wanted:
                raise ValueError(
                    f"subsample[{plate.name!r}] has shape {tuple(index.shape)}, wanted "
                    f"{wanted[0]} or {wanted[1]}"
                )
            indices.append(index.expand(num_chains, -1))
        return indices

    def _example(self) -> list[Tensor]:
        """Random arguments of one chain; they leave the global generator alone."""
        return [self._points(), *self._runner.random_indices(self._points.generator)]

    def example(self) -> list[Tensor]:
        """Random values of the latent sites and subsamples of one chain."""
        flat, *indices = self._example()
        values = self.constrain(self.layout.unflatten(flat))
        return [self._runner.constrained.flatten(values), *indices]

    def _weighted_example(self) -> list[Tensor]:
        block = next(self._runner.blocks())
        return [self._example()[0], *self._runner.block_tensors(block)]

    def _block_rows(self, count: int) -> Iterator[list[Tensor]]:
        """Blocks that cover all of the data, at most ``count`` of them stacked at a time."""
        tensors = (self._runner.block_tensors(block) for block in self._runner.blocks())
        while some := list(islice(tensors, count)):
            yield [torch.stack(parts) for parts in zip(*some, strict=True)]


class FunctionPotential:
    """A potential given as a function of one chain's unconstrained parameters.

    :param potential_fn: maps a dict of tensors to a scalar.
    :param Mapping params: parameters with a leading chain dimension, for their shapes and types.
    :param str backend: as for :class:`~pyro_ext.potential.Potential`.
    """

    subsampled_plates: tuple[Plate, ...] = ()
    data_size = 1

    def __init__(
        self,
        potential_fn: Callable[[dict[str, Tensor]], Tensor],
        params: Mapping[str, Tensor],
        backend: Backend = "trace",
    ) -> None:
        check_backend(backend)
        checks.function("potential_fn", potential_fn)
        params = checks.tensors("params", params, finite=True)
        self.layout = Layout.of(params, num_leading=1)
        self.layout.check(params, "initial_params")
        self._potential_fn = potential_fn
        self._start = self.layout.flatten(params)[0].detach()
        value = self._value(self._start)
        if not isinstance(value, Tensor) or value.dim() != 0:
            raise ValueError(f"potential_fn must return a scalar tensor, got {value!r:.80}")
        self._points = RandomPoints(self._start)
        self.value = BatchedFunction(self._value, self._example, backend)
        self.gradient = BatchedFunction(Gradient(self._value), self._example, backend)

    def full_value_and_grad(self, params: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Potential and its gradient for each chain, as of :class:`Potential`."""
        self.layout.check(params, "params")
        value, gradient = self.gradient.over_any(self.layout.flatten(params).detach())
        return value, self.layout.unflatten(gradient)

    def _value(self, flat: Tensor) -> Tensor:
        return self._potential_fn(self.layout.unflatten(flat))

    def _example(self) -> list[Tensor]:
        return [self._points()]


def energy(flat: Tensor, potential: Potential) -> Tensor:
    """Potential of one chain, whose gradient comes with it rather than from another pass.

    Shapes: flat (size,).

    Example::

        >>> def model():
        ...     pyro.sample("loc", dist.Normal(0.0, 1.0))
        >>> from pyro_ext.potential import Potential
        >>> point = torch.tensor([2.0], requires_grad=True)
        >>> torch.autograd.grad(energy(point, Potential(model)), point)
        (tensor([2.]),)
    """
    value: Tensor = _Energy.apply(flat, potential)  # type: ignore[no-untyped-call]
    return value


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, flat: Tensor, of: Potential) -> Tensor:
        value, gradient = of.gradient(flat.detach().unsqueeze(0))
        ctx.save_for_backward(gradient[0])
        result: Tensor = value[0]
        return result

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *outer: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return outer[0] * gradient, None
