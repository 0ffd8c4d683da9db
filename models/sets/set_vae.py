"""A hierarchical variational autoencoder of sets: parts of parts, by attention to few points."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Gumbel, Normal, TorchDistribution, constraints
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.nn import functional

from pyro_ext._lib import checks
from pyro_ext.diagnostics.sets import as_sets, chamfer_distance
from pyro_ext.nn import MAB, PMA
from pyro_ext.nn.attention import check_heads
from pyro_ext.random import fresh_seed

_LOG_VARIANCES = (-4.0, 3.0)  # beyond these the divergence explodes early in training
_PART_OF_DISTANCE = 1e-3
_ROUNDING = 1e-5

# Draws the latent variables of a scale, given its number, their prior and gathered features.
Draw = Callable[[int, Normal, Tensor | None], Tensor]


class SetVAETerms(NamedTuple):
    """Terms of the loss of a :class:`SetVAE`.

    :param Tensor distance: from each set to its reconstruction. **Shape:** ``(num_sets,)``.
    :param Tensor kl: divergence of posterior from prior at each scale. **Shape:** ``(num_sets,
        num_scales)``.
    """

    distance: Tensor
    kl: Tensor


class GeneratedSets(NamedTuple):
    """Sets that a :class:`SetVAE` made.

    :param Tensor x: the points, zero for padding. **Shape:** ``(num_sets, largest size,
        input_size)``.
    :param Tensor mask: true where there is a point. **Shape:** ``(num_sets, largest size)``.
    :param tuple latents: those behind the sets, coarsest scale first. **Shape:** ``(num_sets,
        scale, latent_size)`` each.
    """

    x: Tensor
    mask: Tensor
    latents: tuple[Tensor, ...]


class GaussianMixtureSet(nn.Module):
    r"""Independent draws from a mixture of Gaussians: the sets that a decoder begins with.

    Means are standard normal at first, and standard deviations are absolute values of normal
    numbers of variance ``1 / num_components``. Where they are learned, gradients reach the weights
    by straight-through Gumbel-softmax with temperature one.

    :param int size: number of features of an element.
    :param int num_components: number of components, of equal weights at first.

    Example::

        >>> GaussianMixtureSet(8, 4)(torch.zeros(5, 3, 4), torch.randn(5, 3, 8)).shape
        torch.Size([5, 3, 8])
    """

    logits: Tensor
    loc: Tensor
    log_scale: Tensor

    def __init__(self, size: int = 32, num_components: int = 4) -> None:
        super().__init__()
        self.size = checks.integer("size", size, 1)
        self.num_components = checks.integer("num_components", num_components, 1)
        scale = torch.randn(num_components, size).abs() / num_components**0.5
        self.register_buffer("logits", torch.zeros(num_components))
        self.register_buffer("loc", torch.randn(num_components, size))
        self.register_buffer("log_scale", scale.log())

    def forward(self, gumbel: Tensor, normal: Tensor) -> Tensor:
        """Make elements of noise.

        :param Tensor gumbel: standard Gumbel numbers. **Shape:** ``(*batch, num_components)``.
        :param Tensor normal: standard normal numbers. **Shape:** ``(*batch, size)``.
        :returns: **Shape:** ``(*batch, size)``.
        """
        soft = (self.logits + gumbel).softmax(-1)
        hard = functional.one_hot(soft.argmax(-1), self.num_components).to(soft)
        component = hard + (soft - soft.detach())
        elements: Tensor = component @ self.loc + component @ self.log_scale.exp() * normal
        return elements


class _Network(nn.Module):
    """Encoder and decoder as functions of tensors."""

    def __init__(
        self,
        input_size: int,
        scales: tuple[int, ...],
        hidden_size: int,
        latent_size: int,
        num_heads: int,
        initial_set: GaussianMixtureSet,
        unit_cube: bool,
    ) -> None:
        super().__init__()

        def gathers(scales: tuple[int, ...]) -> nn.ModuleList:
            sizes = hidden_size, hidden_size
            return nn.ModuleList(
                PMA(*sizes, scale, num_heads, residual="input", normalize="queries")
                for scale in scales
            )

        def spreads(number: int) -> nn.ModuleList:
            sizes = hidden_size, hidden_size, hidden_size
            return nn.ModuleList(MAB(*sizes, num_heads, residual="input") for _ in range(number))

        def linears(number: int, in_features: int, out_features: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Linear(in_features, out_features) for _ in range(number))

        number = len(scales)
        self.unit_cube = unit_cube
        self.input = nn.Linear(input_size, hidden_size)
        self.encoder_gathers = gathers(scales)
        self.encoder_spreads = spreads(number - 1)  # what the coarsest gathers ends there
        self.posteriors = linears(number, hidden_size, 2 * latent_size)
        self.initial_set = initial_set
        self.initial = nn.Linear(initial_set.size, hidden_size)
        self.top_prior = nn.Parameter(torch.zeros(scales[0], 2 * latent_size))
        self.decoder_gathers = gathers(scales[1:])
        self.priors = linears(number - 1, hidden_size, 2 * latent_size)
        self.latents = linears(number, latent_size, hidden_size)
        self.decoder_spreads = spreads(number)
        self.output = nn.Linear(hidden_size, input_size)

    def encode(self, x: Tensor, mask: Tensor, parts: list[Tensor] | None = None) -> list[Tensor]:
        """Gather features at each scale, coarsest first; insert parts into ``parts`` if given."""
        elements = self.input(x)
        features: list[Tensor] = []
        for number in reversed(range(len(self.encoder_gathers))):
            gather = self.encoder_gathers[number]
            features.insert(0, gather(elements, mask))
            if parts is not None:
                parts.insert(0, _parts(gather, elements))
            if number:
                elements = self.encoder_spreads[number - 1](elements, features[0])
        return features

    def decode(
        self, mask: Tensor, noise: tuple[Tensor, Tensor], draw: Draw
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Points, and the latent variables as they were drawn."""
        elements = self.initial(self.initial_set(*noise))
        latents: list[Tensor] = []
        for number, spread in enumerate(self.decoder_spreads):
            gathered = self.decoder_gathers[number - 1](elements, mask) if number else None
            raw = (
                self.top_prior.expand(len(mask), -1, -1)
                if gathered is None
                else self.priors[number - 1](gathered)
            )
            latents.append(draw(number, _normal(raw), gathered))
            elements = spread(elements, self.latents[number](latents[-1]))
        points = self.output(elements)
        if self.unit_cube:
            points = torch.sigmoid(2 * points)  # (tanh + 1) / 2
        return points.masked_fill(~mask[..., None], 0), tuple(latents)

    def posterior(
        self, number: int, prior: Normal, features: list[Tensor], gathered: Tensor | None
    ) -> Normal:
        """Posterior of a scale, as a residual of its prior."""
        both = features[number] if gathered is None else features[number] + gathered
        residual = _normal(self.posteriors[number](both))
        loc, scale = prior.loc + residual.loc, prior.scale * residual.scale
        return Normal(loc, scale, validate_args=False)


class SetVAE(PyroModule):
    r"""A variational autoencoder of sets with latent variables at several scales [1].

    At each scale the elements of a set are divided among a few inducing points, by attention in
    which these compete. An encoder goes from many points to few and keeps what it has gathered,
    :math:`g_l`. The decoder goes from few to many: it begins with independent elements, as many as
    the set is to have, gathers :math:`h_l` from them, draws for each point

    .. math:: z_l \sim \mathcal{N}(\mu(h_l), \sigma^2(h_l)) \quad\text{or, given data,}\quad
        z_l \sim \mathcal{N}(\mu + \Delta\mu,\, (\sigma\, \Delta\sigma)^2), \quad
        \Delta\mu, \Delta\sigma \text{ of } g_l + h_l,

    and lets the elements look at :math:`z_l`. At the coarsest scale :math:`\mu` and :math:`\sigma`
    are parameters, and the posterior is given :math:`g_1` alone. Nothing sees an order, and latent
    variables that are drawn once make sets of any size.

    A distance between sets, rather than a likelihood, measures the reconstruction: the loss is
    :math:`\mathbb{E}\, d(x, \hat x) + \beta \sum_l \mathrm{KL}_l` for each set, which bounds
    nothing. :meth:`model` and :meth:`guide` go with :class:`~pyro.infer.TraceMeanField_ELBO`, which
    passes the decoder twice; :meth:`terms` has the same loss in one pass.

    :param int input_size: number of coordinates of a point.
    :param Sequence scales: numbers of inducing points, coarsest first.
    :param int hidden_size: number of features of an element, a multiple of ``num_heads``.
    :param int latent_size: number of latent variables for each inducing point.
    :param int num_heads: number of heads.
    :param GaussianMixtureSet initial_set: what a decoder begins with; by default that of [1].
    :param bool unit_cube: whether coordinates are from zero to one; others are refused then.

    [1] J. Kim, J. Yoo, J. Lee, S. Hong (2021), SetVAE: learning hierarchical composition for
    generative modeling of set-structured data.

    Example::

        >>> from pyro.infer import SVI, TraceMeanField_ELBO
        >>> vae = SetVAE(2, scales=(1, 2), hidden_size=16, latent_size=4)
        >>> x, optimizer = torch.rand(5, 7, 2), pyro.optim.Adam({"lr": 1e-3})
        >>> svi = SVI(vae.model, vae.guide, optimizer, TraceMeanField_ELBO())
        >>> losses = [svi.step(x) for _ in range(3)]
        >>> vae.sample([3, 9]).x.shape
        torch.Size([2, 9, 2])
    """

    def __init__(
        self,
        input_size: int,
        scales: Sequence[int] = (1, 2, 4, 8),
        hidden_size: int = 64,
        latent_size: int = 16,
        num_heads: int = 4,
        *,
        initial_set: GaussianMixtureSet | None = None,
        unit_cube: bool = False,
    ) -> None:
        super().__init__()
        self.input_size = checks.integer("input_size", input_size, 1)
        scales = checks.sequence("scales", scales, "a list of integers >= 1")
        self.scales = tuple(checks.integer("scales", scale, 1) for scale in scales)
        check_heads("hidden_size", hidden_size, num_heads)
        self.latent_size = checks.integer("latent_size", latent_size, 1)
        initial_set = GaussianMixtureSet() if initial_set is None else initial_set
        checks.instance("initial_set", initial_set, GaussianMixtureSet, "a GaussianMixtureSet")
        checks.boolean("unit_cube", unit_cube)
        self.network = _Network(
            input_size, self.scales, hidden_size, latent_size, num_heads, initial_set, unit_cube
        )

    @pyro_method
    def model(self, x: Any, mask: Any = None, beta: float | None = None) -> Tensor:
        """The Pyro model: sites ``"z_1"``, ``"z_2"``, ... and the sets ``"x"``.

        Noise that the decoder begins with is in ``"initial_gumbel"`` and ``"initial_normal"``. The
        log density of ``"x"`` is minus the distance from what is decoded, which is also its draw.

        :param x: sets of points, or ``None`` to draw them. **Shape:** ``(num_sets, size,
            input_size)``.
        :param mask: bool, true for points that are there; without ``x`` it says how many there are.
            **Shape:** ``(num_sets, size)``.
        :param float beta: weight of the divergence, above zero. By default a thousandth of the mean
            distance from these sets to their mean points, so that it fits their sizes and units: a
            larger one loses what small sets have.
        :returns: sets of the same sizes. **Shape:** that of ``x``.
        """
        network = self.network  # Pyro registers it at each access
        if beta is not None:
            checks.number("beta", beta, above=0)
        if x is None:
            mask = checks.as_tensor("mask", mask, "(num_sets, size)", kind="booleans")
            mask = mask.to(network.top_prior.device)
            beta = 1.0 if beta is None else beta  # draws have no weight
        else:
            x, mask = self._sets(network, x, mask)
            beta = self._weight(x, mask) if beta is None else beta
        with pyro.plate("sets", len(mask)):
            points, _ = network.decode(
                mask, _noise_sites(network, mask), lambda n, prior, _: _site(n, prior, beta)
            )
            pyro.sample("x", _NearSets(points, mask), obs=x)
        return points

    @pyro_method
    def guide(self, x: Any, mask: Any = None, beta: float | None = None) -> Tensor:
        """The guide that goes with :meth:`model`, whose arguments it has."""
        network = self.network
        x, mask = self._sets(network, x, mask)
        beta = self._weight(x, mask) if beta is None else checks.number("beta", beta, above=0)
        features = network.encode(x, mask)

        def draw(number: int, prior: Normal, gathered: Tensor | None) -> Tensor:
            return _site(number, network.posterior(number, prior, features, gathered), beta)

        with pyro.plate("sets", len(x)):
            points, _ = network.decode(mask, _noise_sites(network, mask), draw)
        return points

    def terms(
        self, x: Any, mask: Any = None, *, generator: torch.Generator | None = None
    ) -> SetVAETerms:
        """Compute the terms of the loss, with one draw from the posterior.

        :param x: sets of points. **Shape:** ``(num_sets, size, input_size)``.
        :param mask: bool, true for points that are there. **Shape:** ``(num_sets, size)``.
        :param torch.Generator generator: of the draws; by default PyTorch's own.
        """
        x, mask = self._sets(self.network, x, mask)
        generated, kl = self._reconstructed(x, mask, generator)
        return SetVAETerms(chamfer_distance(x, generated.x, mask, mask), kl)

    @torch.no_grad()
    def reconstruct(self, x: Any, mask: Any = None, seed: int | None = None) -> GeneratedSets:
        """Draw sets of the same sizes, with latent variables from the posterior.

        :param x: sets of points. **Shape:** ``(num_sets, size, input_size)``.
        :param mask: bool, true for points that are there. **Shape:** ``(num_sets, size)``.
        :param int seed: of the draws; by default PyTorch's generator goes on.
        """
        x, mask = self._sets(self.network, x, mask)
        return self._reconstructed(x, mask, _generator(seed, x.device))[0]

    @torch.no_grad()
    def sample(
        self,
        sizes: Sequence[int],
        latents: Sequence[Tensor] | None = None,
        seed: int | None = None,
    ) -> GeneratedSets:
        """Draw sets of any sizes, also with latent variables that there are.

        :param Sequence sizes: number of points of each set.
        :param Sequence latents: latent variables of an earlier result, or between those of two,
            coarsest scale first. **Shape:** ``(num_sets, scale, latent_size)`` each.
        :param int seed: of the draws; by default PyTorch's generator goes on.
        """
        sizes = checks.sequence("sizes", sizes, "a list of integers >= 1")
        sizes = [checks.integer("sizes", size, 1) for size in sizes]
        network = self.network
        device = network.top_prior.device
        given = None if latents is None else self._latents(latents, len(sizes))
        mask = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
        mask, generator = mask.to(device), _generator(seed, device)

        def draw(number: int, prior: Normal, gathered: Tensor | None) -> Tensor:
            return _drawn(prior, generator) if given is None else given[number]

        points, drawn = network.decode(mask, _noise(network, mask, generator), draw)
        return GeneratedSets(points, mask, drawn)

    @torch.no_grad()
    def partition(self, x: Any, mask: Any = None) -> tuple[Tensor, ...]:
        """Parts of sets at each scale: to which inducing point of the encoder a point goes most.

        :param x: sets of points. **Shape:** ``(num_sets, size, input_size)``.
        :param mask: bool, true for points that are there. **Shape:** ``(num_sets, size)``.
        :returns: numbers of inducing points, coarsest scale first, -1 where there is no point.
            **Shape:** ``(num_sets, size)`` each.
        """
        x, mask = self._sets(self.network, x, mask)
        parts: list[Tensor] = []
        self.network.encode(x, mask, parts)
        return tuple(part.masked_fill(~mask, -1) for part in parts)

    def _reconstructed(
        self, x: Tensor, mask: Tensor, generator: torch.Generator | None
    ) -> tuple[GeneratedSets, Tensor]:
        """Sets of posterior draws, and the divergence from the prior at each scale."""
        network = self.network
        features = network.encode(x, mask)
        divergences: list[Tensor] = []

        def draw(number: int, prior: Normal, gathered: Tensor | None) -> Tensor:
            posterior = network.posterior(number, prior, features, gathered)
            divergences.append(kl_divergence(posterior, prior).sum((-2, -1)))
            return _drawn(posterior, generator)

        points, latents = network.decode(mask, _noise(network, mask, generator), draw)
        return GeneratedSets(points, mask, latents), torch.stack(divergences, -1)

    def _sets(self, network: _Network, x: Any, mask: Any) -> tuple[Tensor, Tensor]:
        shape = f"(num_sets, size, {self.input_size})"
        x, mask = as_sets("x", x, mask, "mask", shape, network.top_prior)
        if network.unit_cube and not bool(((x >= -_ROUNDING) & (x <= 1.0 + _ROUNDING)).all()):
            raise ValueError(
                "x must be from 0 to 1 with unit_cube=True, got from "
                f"{float(x.min()):.4g} to {float(x.max()):.4g}"
            )
        return x, mask

    def _weight(self, x: Tensor, mask: Tensor) -> float:
        """Weight of the divergence that goes with the distances of sets."""
        there = mask[..., None].to(x)
        middle = (x * there).sum(-2, keepdim=True) / there.sum(-2, keepdim=True)
        apart = chamfer_distance(x, middle.expand_as(x) * there, mask, mask).detach()
        return _PART_OF_DISTANCE * max(float(apart.mean()), torch.finfo(x.dtype).tiny)

    def _latents(self, latents: Sequence[Tensor], num_sets: int) -> list[Tensor]:
        values = checks.sequence("latents", latents, "a list of tensors, one for each scale")
        if len(values) != len(self.scales):
            raise ValueError(
                f"latents must be as many as the {len(self.scales)} scales, got {len(values)}"
            )
        shapes = [f"({num_sets}, {scale}, {self.latent_size})" for scale in self.scales]
        return [
            checks.as_tensor("latents", value, shape, finite=True, like=self.network.top_prior)
            for value, shape in zip(values, shapes, strict=True)
        ]


class _NearSets(TorchDistribution):
    """Sets near to other sets: the density falls by the distance, and is not normalized."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, points: Tensor, there: Tensor) -> None:
        self.points, self.there = points, there
        super().__init__(points.shape[:-2], points.shape[-2:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_NearSets":
        points = self.points.expand(*batch_shape, *self.event_shape)
        return _NearSets(points, self.there)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.points.expand(*sample_shape, *self.points.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        there = self.there.expand(self.points.shape[:-1])  # there may be plates of particles
        return -chamfer_distance(value, self.points, self.there, there)


def _normal(raw: Tensor) -> Normal:
    """Of means and logarithms of variances side by side."""
    loc, log_variance = raw.chunk(2, -1)
    return Normal(loc, (log_variance.clamp(*_LOG_VARIANCES) / 2).exp(), validate_args=False)


def _drawn(distribution: Normal, generator: torch.Generator | None) -> Tensor:
    noise = torch.empty_like(distribution.loc).normal_(generator=generator)
    drawn: Tensor = distribution.loc + distribution.scale * noise
    return drawn


def _site(number: int, distribution: Normal, beta: float) -> Tensor:
    with poutine.scale(scale=beta):
        latent: Tensor = pyro.sample(f"z_{number + 1}", distribution.to_event(2))
    return latent


def _noise(
    network: _Network, mask: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Gumbel and normal numbers for each element."""
    like, mixture = network.top_prior, network.initial_set
    gumbel = like.new_empty(*mask.shape, mixture.num_components)
    gumbel = -gumbel.exponential_(generator=generator).log()
    return gumbel, like.new_empty(*mask.shape, mixture.size).normal_(generator=generator)


def _noise_sites(network: _Network, mask: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`_noise`. The guide draws them from the prior, so that densities cancel."""
    like, mixture = network.top_prior, network.initial_set
    zero, one = like.new_zeros(()), like.new_ones(())
    gumbel = Gumbel(zero, one).expand([*mask.shape, mixture.num_components])
    normal = Normal(zero, one).expand([*mask.shape, mixture.size])
    return (
        pyro.sample("initial_gumbel", gumbel.to_event(2).mask(False)),
        pyro.sample("initial_normal", normal.to_event(2).mask(False)),
    )


def _generator(seed: int | None, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(fresh_seed(seed))


def _parts(gather: Any, elements: Tensor) -> Tensor:
    """The inducing point with the largest part of each element, on average over heads."""
    block = gather.block
    query = block.query(gather.seeds).unflatten(-1, (block.num_heads, -1))
    key = block.key(elements).unflatten(-1, (block.num_heads, -1))
    logits = torch.einsum("mhd,bnhd->bhmn", query, key) / elements.shape[-1] ** 0.5
    parts: Tensor = logits.softmax(-2).mean(1)  # before those of an inducing point are normalized
    return parts.argmax(1)
