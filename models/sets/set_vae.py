"""A hierarchical variational autoencoder of sets: parts of parts, by attention to few points.

Numbers in brackets are those of the paper in the docstring of :class:`SetVAE`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Gumbel, Normal
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.nn import functional

from pyro_ext._checks import (
    as_tensor,
    check_boolean,
    check_callable,
    check_instance,
    check_integer,
    check_number,
    check_sequence,
)
from pyro_ext.diagnostics.sets import as_sets, chamfer_distance
from pyro_ext.nn import MAB, PMA
from pyro_ext.random import fresh_seed

__all__ = ["GaussianMixtureSet", "GeneratedSets", "SetVAE", "SetVAETerms"]

_LOG_VARIANCES = (-4.0, 3.0)  # beyond these the divergence explodes early in training

# Draws the latent variables of a scale, given its number, their prior and gathered features.
Draw = Callable[[int, Normal, Tensor | None], Tensor]


class SetVAETerms(NamedTuple):
    """What the loss of a :class:`SetVAE` is made of.

    :param Tensor distance: Chamfer distance of each set to its reconstruction. **Shape:**
        ``(num_sets,)``.
    :param Tensor kl: divergence of posterior from prior at each scale. **Shape:** ``(num_sets,
        num_scales)``.
    """

    distance: Tensor
    kl: Tensor


class GeneratedSets(NamedTuple):
    """Sets that a :class:`SetVAE` made.

    :param Tensor x: the points, zero where there is none. **Shape:** ``(num_sets, largest size,
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
    :param bool trainable: whether weights, means and deviations are learned.

    Example::

        >>> GaussianMixtureSet(8, 4)(torch.zeros(5, 3, 4), torch.randn(5, 3, 8)).shape
        torch.Size([5, 3, 8])
    """

    def __init__(self, size: int = 32, num_components: int = 4, *, trainable: bool = False) -> None:
        super().__init__()
        self.size = check_integer("size", size, 1)
        self.num_components = check_integer("num_components", num_components, 1)
        check_boolean("trainable", trainable)
        scale = torch.randn(num_components, size).abs() / num_components**0.5
        for name, value in (
            ("logits", torch.zeros(num_components)),
            ("loc", torch.randn(num_components, size)),
            ("log_scale", scale.log()),
        ):
            if trainable:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

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


class SetVAE(PyroModule):
    r"""A variational autoencoder of sets with latent variables at several scales [1].

    At each scale a few inducing points share out the elements of a set among them, by attention in
    which they compete. An encoder goes from many points to few and keeps what it has gathered,
    :math:`g_l`. The decoder goes from few to many: it begins with independent elements, as many as
    the set is to have, gathers :math:`h_l` from them, draws for each point

    .. math:: z_l \sim \mathcal{N}(\mu(h_l), \sigma^2(h_l)) \quad\text{or, given data,}\quad
        z_l \sim \mathcal{N}(\mu + \Delta\mu,\, (\sigma\, \Delta\sigma)^2), \quad
        \Delta\mu, \Delta\sigma \text{ of } g_l + h_l,

    and lets the elements look at :math:`z_l`. At the coarsest scale :math:`\mu` and :math:`\sigma`
    are parameters, and the posterior is given :math:`g_1` alone. Nothing sees an order, and latent
    variables that are drawn once make sets of any size.

    A distance of sets, which is no likelihood, says how good a reconstruction is: the loss is
    :math:`\mathbb{E}\, d(x, \hat x) + \beta \sum_l \mathrm{KL}_l` for each set, which bounds
    nothing. :meth:`model` and :meth:`guide` go with :class:`~pyro.infer.TraceMeanField_ELBO`, which
    passes the decoder twice; :meth:`terms` has the same loss in one pass.

    :param int input_size: number of coordinates of a point.
    :param Sequence scales: numbers of inducing points, coarsest first.
    :param int hidden_size: number of features of an element, a multiple of ``num_heads``.
    :param int latent_size: number of latent variables for each inducing point.
    :param int num_heads: number of heads.
    :param GaussianMixtureSet initial_set: what a decoder begins with; by default that of [1].
    :param bool unit_cube: whether coordinates are from zero to one.
    :param Callable distance: of two sets and their masks, such as
        :func:`~pyro_ext.diagnostics.sets.chamfer_distance`.

    [1] J. Kim, J. Yoo, J. Lee, S. Hong (2021), SetVAE: learning hierarchical composition for
    generative modeling of set-structured data.

    Example::

        >>> from pyro.infer import SVI, TraceMeanField_ELBO
        >>> vae = SetVAE(2, scales=(1, 2), hidden_size=16, latent_size=4)
        >>> x, optimizer = torch.rand(5, 7, 2), pyro.optim.Adam({"lr": 1e-3})
        >>> svi = SVI(vae.model, vae.guide, optimizer, TraceMeanField_ELBO())
        >>> losses = [svi.step(x, beta=1e-3) for _ in range(3)]
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
        distance: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = chamfer_distance,
    ) -> None:
        super().__init__()
        self.input_size = check_integer("input_size", input_size, 1)
        scales = check_sequence("scales", scales, "a list of integers >= 1")
        self.scales = tuple(check_integer("scales", scale, 1) for scale in scales)
        check_integer("hidden_size", hidden_size, 1)
        self.latent_size = check_integer("latent_size", latent_size, 1)
        check_integer("num_heads", num_heads, 1)
        if hidden_size % num_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_heads={num_heads}, got {hidden_size}"
            )
        initial_set = GaussianMixtureSet() if initial_set is None else initial_set
        check_instance("initial_set", initial_set, GaussianMixtureSet, "a GaussianMixtureSet")
        self.unit_cube = check_boolean("unit_cube", unit_cube)
        check_callable("distance", distance, or_class=False)
        self.distance = distance

        def gathers(scales: Sequence[int]) -> nn.ModuleList:
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

        num_scales = len(self.scales)
        self.input = nn.Linear(input_size, hidden_size)
        self.encoder_gathers = gathers(self.scales)
        self.encoder_spreads = spreads(num_scales - 1)  # what the coarsest has is spread no more
        self.posteriors = linears(num_scales, hidden_size, 2 * latent_size)
        self.initial_set = initial_set
        self.initial = nn.Linear(initial_set.size, hidden_size)
        self.top_prior = nn.Parameter(torch.zeros(self.scales[0], 2 * latent_size))
        self.decoder_gathers = gathers(self.scales[1:])
        self.priors = linears(num_scales - 1, hidden_size, 2 * latent_size)
        self.latents = linears(num_scales, latent_size, hidden_size)
        self.decoder_spreads = spreads(num_scales)
        self.output = nn.Linear(hidden_size, input_size)

    # Pyro ----------------------------------------------------------------------------------------

    @pyro_method
    def model(self, x: Any, mask: Any = None, beta: float = 1.0) -> Tensor:
        """The Pyro model: sites ``"z_1"``, ``"z_2"``, ... and the factor ``"reconstruction"``.

        The noise that a decoder begins with is in ``"initial_gumbel"`` and ``"initial_normal"``.

        :param x: sets of points. **Shape:** ``(num_sets, size, input_size)``.
        :param mask: bool, true for points that are there. **Shape:** ``(num_sets, size)``.
        :param float beta: weight of the divergence, above zero.
        :returns: sets of the same sizes. **Shape:** that of ``x``.
        """
        x, mask = self._sets(x, mask)
        check_number("beta", beta, above=0)

        def draw(number: int, prior: Normal, gathered: Tensor | None) -> Tensor:
            return _site(number, prior, beta)

        with pyro.plate("sets", len(x)):
            points, _ = self._decode(mask, self._noise_sites(mask), draw)
            pyro.factor("reconstruction", -self.distance(x, points, mask, mask))
        return points

    @pyro_method
    def guide(self, x: Any, mask: Any = None, beta: float = 1.0) -> Tensor:
        """The guide that goes with :meth:`model`, whose arguments it has."""
        x, mask = self._sets(x, mask)
        check_number("beta", beta, above=0)
        features = self._encode(x, mask)

        def draw(number: int, prior: Normal, gathered: Tensor | None) -> Tensor:
            return _site(number, self._posterior(number, prior, features, gathered), beta)

        with pyro.plate("sets", len(x)):
            points, _ = self._decode(mask, self._noise_sites(mask), draw)
        return points

    # Tensors -------------------------------------------------------------------------------------

    def terms(
        self, x: Any, mask: Any = None, *, generator: torch.Generator | None = None
    ) -> SetVAETerms:
        """What the loss is made of, with one draw from the posterior.

        :param x: sets of points. **Shape:** ``(num_sets, size, input_size)``.
        :param mask: bool, true for points that are there. **Shape:** ``(num_sets, size)``.
        :param torch.Generator generator: of the draws; by default PyTorch's own.
        """
        x, mask = self._sets(x, mask)
        features = self._encode(x, mask)
        divergences = []

        def draw(number: int, prior: Normal, gathered: Tensor | None) -> Tensor:
            posterior = self._posterior(number, prior, features, gathered)
            divergences.append(kl_divergence(posterior, prior).sum((-2, -1)))
            return _drawn(posterior, generator)

        points, _ = self._decode(mask, self._noise(mask, generator), draw)
        return SetVAETerms(self.distance(x, points, mask, mask), torch.stack(divergences, -1))

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
        counts = [
            check_integer("sizes", size, 1)
            for size in check_sequence("sizes", sizes, "a list of integers >= 1")
        ]
        like = self.top_prior
        given = None if latents is None else self._latents(latents, len(counts))
        size = torch.tensor(counts, device=like.device)
        mask = torch.arange(max(counts), device=like.device) < size[:, None]
        generator = self._generator(seed)

        def draw(number: int, prior: Normal, gathered: Tensor | None) -> Tensor:
            return _drawn(prior, generator) if given is None else given[number]

        points, drawn = self._decode(mask, self._noise(mask, generator), draw)
        return GeneratedSets(points, mask, drawn)

    @torch.no_grad()
    def reconstruct(self, x: Any, mask: Any = None, seed: int | None = None) -> GeneratedSets:
        """Draw sets of the same sizes, with latent variables from the posterior.

        :param x: sets of points. **Shape:** ``(num_sets, size, input_size)``.
        :param mask: bool, true for points that are there. **Shape:** ``(num_sets, size)``.
        :param int seed: of the draws; by default PyTorch's generator goes on.
        """
        x, mask = self._sets(x, mask)
        features = self._encode(x, mask)
        generator = self._generator(seed)

        def draw(number: int, prior: Normal, gathered: Tensor | None) -> Tensor:
            return _drawn(self._posterior(number, prior, features, gathered), generator)

        points, drawn = self._decode(mask, self._noise(mask, generator), draw)
        return GeneratedSets(points, mask, drawn)

    @torch.no_grad()
    def partition(self, x: Any, mask: Any = None) -> tuple[Tensor, ...]:
        """Parts of sets at each scale: to which inducing point of the encoder a point goes most.

        :param x: sets of points. **Shape:** ``(num_sets, size, input_size)``.
        :param mask: bool, true for points that are there. **Shape:** ``(num_sets, size)``.
        :returns: numbers of inducing points, coarsest scale first, -1 where there is no point.
            **Shape:** ``(num_sets, size)`` each.
        """
        x, mask = self._sets(x, mask)
        parts: list[Tensor] = []
        self._encode(x, mask, parts)
        return tuple(part.masked_fill(~mask, -1) for part in parts)

    # What they are made of -----------------------------------------------------------------------

    def _sets(self, x: Any, mask: Any) -> tuple[Tensor, Tensor]:
        return as_sets("x", x, mask, "mask", f"(num_sets, size, {self.input_size})", self.top_prior)

    def _latents(self, latents: Sequence[Tensor], num_sets: int) -> list[Tensor]:
        values = check_sequence("latents", latents, "a list of tensors, one for each scale")
        if len(values) != len(self.scales):
            raise ValueError(
                f"latents must be as many as the {len(self.scales)} scales, got {len(values)}"
            )
        shapes = [f"({num_sets}, {scale}, {self.latent_size})" for scale in self.scales]
        return [
            as_tensor("latents", value, shape, finite=True, like=self.top_prior)
            for value, shape in zip(values, shapes, strict=True)
        ]

    def _encode(self, x: Tensor, mask: Tensor, parts: list[Tensor] | None = None) -> list[Tensor]:
        """What is gathered at each scale, coarsest first; and the parts, where they are wanted."""
        elements = self.input(x)
        features: list[Tensor] = []
        for number in reversed(range(len(self.scales))):
            gather = self.encoder_gathers[number]
            features.insert(0, gather(elements, mask))
            if parts is not None:
                parts.insert(0, _parts(gather, elements))
            if number:
                elements = self.encoder_spreads[number - 1](elements, features[0])
        return features

    def _decode(
        self, mask: Tensor, noise: tuple[Tensor, Tensor], draw: Draw
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Points, and the latent variables as they were drawn."""
        elements = self.initial(self.initial_set(*noise))
        latents: list[Tensor] = []
        for number in range(len(self.scales)):
            gathered = self.decoder_gathers[number - 1](elements, mask) if number else None
            raw = (
                self.top_prior.expand(len(mask), -1, -1)
                if gathered is None
                else self.priors[number - 1](gathered)
            )
            latents.append(draw(number, _normal(raw), gathered))
            elements = self.decoder_spreads[number](elements, self.latents[number](latents[-1]))
        points = self.output(elements)
        if self.unit_cube:
            points = torch.sigmoid(2 * points)  # (tanh + 1) / 2
        return points.masked_fill(~mask[..., None], 0), tuple(latents)

    def _posterior(
        self, number: int, prior: Normal, features: list[Tensor], gathered: Tensor | None
    ) -> Normal:
        both = features[number] if gathered is None else features[number] + gathered
        residual = _normal(self.posteriors[number](both))
        return Normal(prior.loc + residual.loc, prior.scale * residual.scale, validate_args=False)

    def _noise(self, mask: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Gumbel and normal numbers for each element."""
        like = self.top_prior
        gumbel = like.new_empty(*mask.shape, self.initial_set.num_components)
        gumbel = -gumbel.exponential_(generator=generator).log()
        shape = (*mask.shape, self.initial_set.size)
        options: Any = dict(dtype=like.dtype, device=like.device)
        return gumbel, torch.randn(shape, generator=generator, **options)

    def _noise_sites(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        zero, one = self.top_prior.new_zeros(()), self.top_prior.new_ones(())
        sizes = {Gumbel: self.initial_set.num_components, Normal: self.initial_set.size}
        gumbel, normal = (
            pyro.sample(
                f"initial_{kind.__name__.lower()}",
                # The guide draws it from the prior, so that its density cancels.
                kind(zero, one).expand([*mask.shape, size]).to_event(2).mask(False),
            )
            for kind, size in sizes.items()
        )
        return gumbel, normal

    def _generator(self, seed: int | None) -> torch.Generator:
        return torch.Generator(self.top_prior.device).manual_seed(fresh_seed(seed))


def _normal(raw: Tensor) -> Normal:
    """Of means and logarithms of variances side by side."""
    loc, log_variance = raw.chunk(2, -1)
    return Normal(loc, (log_variance.clamp(*_LOG_VARIANCES) / 2).exp(), validate_args=False)


def _drawn(distribution: Normal, generator: torch.Generator | None) -> Tensor:
    loc = distribution.loc
    noise = torch.randn(loc.shape, generator=generator, dtype=loc.dtype, device=loc.device)
    drawn: Tensor = loc + distribution.scale * noise
    return drawn


def _site(number: int, distribution: Normal, beta: float) -> Tensor:
    with poutine.scale(scale=beta):
        latent: Tensor = pyro.sample(f"z_{number + 1}", distribution.to_event(2))
    return latent


def _parts(gather: PMA, elements: Tensor) -> Tensor:
    """The inducing point with the largest part of each element, on average over heads."""
    block = gather.block
    query = block.query(gather.seeds).unflatten(-1, (block.num_heads, -1))
    key = block.key(elements).unflatten(-1, (block.num_heads, -1))
    logits = torch.einsum("mhd,bnhd->bhmn", query, key) / elements.shape[-1] ** 0.5
    return logits.softmax(-2).mean(1).argmax(1)
