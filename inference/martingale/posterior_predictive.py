"""The predictive rule of a Pyro model, by any inference of its posterior."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from pyro import poutine, validation_enabled
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.martingale.predictive_rule import (
    PredictiveRule,
    Resampled,
    check_data,
    seed_generator,
    uniforms,
)
from pyro_ext.inference.martingale.weighted_sample import WeightedSample
from pyro_ext.inference.mcmc import MCMC
from pyro_ext.posterior.draws import Sampler
from pyro_ext.potential.rows import DrawnRows, drawn_rows
from pyro_ext.random import spawn_seed

_ROWS, _DRAWS = range(2)  # streams
_LATENT, _FUTURE = range(2)  # seeds


class ModelState(NamedTuple):
    """State of the populations of a model."""

    data: tuple[Tensor, ...]
    latents: dict[str, Tensor]  # (num_draws, *event) each
    future: tuple[Tensor, ...]  # further observations in whole blocks (num_draws, number, *event)
    drawn: DrawnRows


class PosteriorPredictive(PredictiveRule):
    r"""Prediction by a Bayesian model.

    .. math:: P_i = \int p(\cdot \mid \theta)\, p(d\theta \mid y_{1:i})

    Such predictions are exchangeable. By de Finetti's theorem, a population is therefore drawn from
    :math:`p(\cdot \mid \theta)` with a single :math:`\theta \sim p(\theta \mid y_{1:n})`. The
    posterior of a functional is that of the functional of :math:`p(\cdot \mid \theta)`.

    The model takes the data as positional arguments, tensors with one row for each point, such as
    ``(x, y)``, and observes some of them in one plate, each point from its own rows. Further points
    have covariates that are drawn from the data with replacement: the empirical distribution of the
    covariates counts as the true one. Populations are of type
    :class:`~pyro_ext.inference.martingale.WeightedSample`, with the tensors in the order of the
    data.

    :param model: a Pyro model.
    :param posterior: a kernel, which :class:`~pyro_ext.inference.MCMC` runs on the data; or, from
        an inference on the same data, a sampler that has run, a dict of draws by site, **Shape:**
        ``(num_posterior_draws, *event)`` each, or a trained guide. Draws of a sampler or dict are
        resampled with replacement, so there should be many of them, and they should mix well.
    :param int num_samples: number of draws of the chain, for a kernel.
    :param int warmup_steps: number of steps before them, for a kernel.
    :param options: other options of :class:`~pyro_ext.inference.MCMC`, except the seed, for a
        kernel.

    Example::

        >>> from pyro_ext.inference.martingale import MartingalePosterior, Mean
        >>> def model(y):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(loc, 1.0), obs=y)
        >>> y = torch.randn(20)
        >>> draws = {"loc": y.mean() + torch.randn(1000) / 20**0.5}
        >>> rule = PosteriorPredictive(model, draws)
        >>> posterior = MartingalePosterior(rule, Mean(), 50, horizon=1000, progress=False)
        >>> posterior.run(y).get_samples()["theta"].shape
        torch.Size([50])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        posterior: Any,
        *,
        num_samples: int = 1000,
        warmup_steps: int = 1000,
        **options: Any,
    ) -> None:
        checks.function("model", model, "a Pyro model")
        is_kernel = isinstance(posterior, MCMCKernel)
        if not isinstance(posterior, MCMCKernel | Mapping | Sampler):
            wanted = "a kernel, a sampler that has run, a dict of draws by site or a guide"
            checks.function("posterior", posterior, wanted, or_class=False)
        if options and not is_kernel:
            raise TypeError(
                f"options {sorted(options)} are those of MCMC, which only a kernel takes, got "
                f"{type(posterior).__name__}"
            )
        checks.integer("num_samples", num_samples, 1)
        checks.integer("warmup_steps", warmup_steps, 0)
        if isinstance(posterior, Mapping) and posterior:
            posterior = checks.tensors("posterior", posterior, finite=True)
        self.model = model
        self.posterior = posterior
        self._options = {"num_samples": num_samples, "warmup_steps": warmup_steps, **options}
        if is_kernel:
            MCMC(posterior, seed=0, **self._options)  # for its checks

    def prepare(self, data: tuple[Tensor, ...], seed: int) -> "PosteriorPredictive":
        """Run the kernel, if there is one."""
        check_data(data)
        drawn = drawn_rows(self.model, data)
        if not isinstance(self.posterior, MCMCKernel):
            return self
        # Not the seed itself, which the draws take their keys from.
        mcmc = MCMC(self.posterior, seed=spawn_seed(seed, 0, 1), **self._options).run(*data)
        samples = mcmc.get_samples()
        latents = {name: samples[name] for name in drawn.latents if name in samples}
        return PosteriorPredictive(self.model, latents)

    def begin(self, data: tuple[Tensor, ...], keys: Tensor) -> Resampled:
        """Start populations that hold only the observations, each with a draw of the latents."""
        size = check_data(data)
        drawn = drawn_rows(self.model, data)
        latents = self._latents(data, keys, drawn)
        if not set(drawn.latents) <= set(latents):
            raise ValueError(
                f"posterior must have draws of the latent sites {sorted(drawn.latents)}, got "
                f"{sorted(latents)}"
            )
        for name, shape in drawn.latents.items():
            if latents[name].shape[1:] != shape:
                raise ValueError(
                    f"posterior must have draws of the shape {tuple(shape)} of the site {name!r}, "
                    f"got {tuple(latents[name].shape[1:])}"
                )
        future = tuple(value.new_empty(len(keys), 0, *value.shape[1:]) for value in data)
        return Resampled(keys, size, size, ModelState(tuple(data), latents, future, drawn))

    def advance(self, state: Resampled, num_steps: int) -> Resampled:
        """Draw observations given the latent values."""
        old: ModelState = state.value
        block_size = old.drawn.block_size
        size = state.size + num_steps
        known = old.future[0].shape[1] // block_size
        blocks = range(known, -(-(size - state.num_observed) // block_size))
        if not blocks:
            return state._replace(size=size)
        # A run at the plate's own size takes all of its rows, though it may look at some.
        num_rows = state.num_observed if old.drawn.subsamples else block_size
        parts: list[tuple[Tensor, ...]] = []
        # The model was checked as it began.
        with torch.random.fork_rng(), torch.no_grad(), validation_enabled(False):
            for draw, key in enumerate(state.keys):
                latents = {name: value[draw] for name, value in old.latents.items()}
                for block in blocks:
                    start = block * num_rows
                    numbers = uniforms(key[None], start, start + num_rows, stream=_ROWS)[0]
                    index = (numbers * state.num_observed).long()
                    rows = tuple(value[index] for value in old.data)
                    seed_generator(key, _FUTURE, block)
                    parts.append(old.drawn.draw(rows, latents))
        shape = (len(state.keys), -1)
        new = (torch.cat(part).unflatten(0, shape) for part in zip(*parts, strict=True))
        future = tuple(torch.cat(pair, 1) for pair in zip(old.future, new, strict=True))
        return state._replace(size=size, value=old._replace(future=future))

    def population(self, state: Resampled) -> WeightedSample:
        """The points of each population, with equal weights."""
        value: ModelState = state.value
        num_draws, number = len(state.keys), state.size - state.num_observed
        values = tuple(
            torch.cat([data.expand(num_draws, *data.shape), future[:, :number]], 1)
            for data, future in zip(value.data, value.future, strict=True)
        )
        # Of the finest type: where they do not sum to one, a mean far from zero is off.
        weights = torch.full((1, 1), 1.0 / state.size, dtype=torch.float64, device=values[0].device)
        return WeightedSample(values, weights.expand(num_draws, state.size), is_shared=False)

    def _latents(
        self, data: tuple[Tensor, ...], keys: Tensor, drawn: DrawnRows
    ) -> dict[str, Tensor]:
        posterior = self.posterior
        if isinstance(posterior, MCMCKernel):
            raise ValueError(
                f"posterior is the kernel {type(posterior).__name__}, which has yet to run: call "
                "begin of the rule that prepare(data, seed) returns"
            )
        if isinstance(posterior, Sampler):
            posterior = posterior.get_samples()
        if isinstance(posterior, Mapping):
            samples = {name: posterior[name] for name in drawn.latents if name in posterior}
            lengths = {len(value) for value in samples.values()}
            if len(lengths) > 1 or 0 in lengths:
                raise ValueError(
                    "posterior must have the same number of draws of each site, at least one, got "
                    f"{ {name: len(value) for name, value in samples.items()} }"
                )
            numbers = uniforms(keys, 0, 1, stream=_DRAWS)[:, 0]
            chosen = (numbers * max(lengths, default=1)).long()
            return {name: value[chosen.to(value.device)] for name, value in samples.items()}
        rows = []
        with torch.random.fork_rng(), torch.no_grad():
            for key in keys:
                seed_generator(key, _LATENT)
                nodes = poutine.trace(posterior).get_trace(*data).nodes
                rows.append({name: nodes[name]["value"] for name in drawn.latents if name in nodes})
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
