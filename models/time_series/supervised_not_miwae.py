"""Classification of series with values missing not at random, through imputation."""

from typing import Any, NamedTuple, Unpack

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn
from torch.nn import functional

from pyro_ext._lib import checks
from pyro_ext.distributions import CauchyGP, PaddedMultivariateNormal
from pyro_ext.handlers import obs_dropout
from pyro_ext.models.time_series.networks import NUM_HEADS, DecayImputer, SeriesTransformer, fade
from pyro_ext.models.time_series.series import Series, as_series, check_labels
from pyro_ext.models.time_series.training import SeriesTraining, train
from pyro_ext.nn import MLP
from pyro_ext.nn.attention import check_heads
from pyro_ext.random import seeded

_LEAST_POSTERIOR_SCALE = 1e-4
_LEAST_SCALE = 1e-3
_START_OF_SCALE = -2.5  # before the softplus


class SeriesPrediction(NamedTuple):
    """Predictions of :meth:`SupervisedNotMIWAE.predict` for series."""

    probs: Tensor
    """Probabilities of the classes. **Shape:** ``(num_series, num_classes)``, online
    ``(num_series, num_steps, num_classes)``."""
    loc: Tensor
    """Means of all cells, observed or not. **Shape:** ``(num_series, num_steps, num_channels)``."""
    scale: Tensor
    """Standard deviations of all cells, of the values themselves. **Shape:** as the means."""
    weights: Tensor
    """Weights of the latent draws, which sum to one. **Shape:** ``(num_latents, num_series)``,
    online ``(num_latents, num_series, num_steps)``."""
    ess: Tensor
    """Effective number of latent draws. **Shape:** as the weights without the first dimension."""


class SupervisedNotMIWAE(PyroModule):
    r"""A classifier of time series with gaps that averages over what may stand in the gaps [1].

    Latent series :math:`z` have a Gaussian process prior over steps, and networks map them to
    values of all channels. Gaps are filled with draws of these values, toward which the last
    observed value decays. A classifier sees the result :math:`x'`, and so does a model of the mask,
    so that values may be missing because of what they are:

    .. math:: z \sim \mathcal{GP}, \quad x \mid z \sim \mathcal{N}(\mu(z), \sigma(z)^2), \quad
              s' \mid x' \sim \text{Bernoulli}(\pi(x')), \quad y \mid x' \sim p(y \mid x').

    Everything is trained by a single bound with :math:`K` latent draws from the guide :math:`q`,

    .. math:: \log \frac1K \sum_k p(y \mid x'_k)\, p(s'_k \mid x'_k)\,
              \frac{p(x_o \mid z_k)\, p(z_k)}{q(z_k \mid x_o)},

    where :math:`x_o` are the observed values; the guide also sees where they are. In training, some
    of them are hidden from the classifier by :func:`~pyro_ext.handlers.obs_dropout` at the site
    ``"seen"``; otherwise it would learn to ignore the generated values. :math:`s'` is the mask of
    the remaining values.

    Cells where the mask is false may hold anything. Series should be standardized by their observed
    values.

    :param int num_channels: number of channels.
    :param int num_classes: number of classes.
    :param int latent_size: number of channels of the latent series.
    :param int width: width of the networks, an even number, since attention has two heads.
    :param int num_layers: number of layers of each of the three transformers.
    :param prior: :class:`~pyro_ext.distributions.CauchyGP`, or any object with a method
        ``covariance`` of the number of steps; ``None`` for independent standard normal variables.
    :param bool missing_model: whether to model the mask; without it, this is the supMIWAE of [1].
    :param bool decay: whether the last value decays toward the generated ones; otherwise gaps hold
        only generated values.
    :param float dropout_rate: rate at which observed values are hidden in training.
    :param bool online: whether each step has a label, predicted from earlier steps. Everything is
        then causal, and the loss is the mean of one bound for each step.
    :param int num_static: number of features of a series that do not change.
    :param float duration: unit of time, by which times are divided. By default the last time of
        each series, as in [1]. With ``online=True`` that is not known in advance, so a number is
        required.
    :raises ValueError: for arguments out of range.

    [1] S. Kim, H. Kim, E. Yun, H. Lee, J. Lee, J. Lee (2023), Probabilistic imputation for
    time-series classification with missing data.

    Example::

        >>> x = torch.randn(6, 5, 3)
        >>> mask = torch.rand(6, 5, 3) < 0.7
        >>> y = torch.tensor([0, 1] * 3)
        >>> model = SupervisedNotMIWAE(3, 2, latent_size=2, width=4, num_layers=1)
        >>> losses = model.fit(
        ...     x, y, mask, num_epochs=1, validation_fraction=0.0, seed=0, progress=False)
        >>> found = model.predict(x, mask, seed=0)
        >>> found.probs.shape, found.loc.shape, found.weights.shape, found.ess.shape
        (torch.Size([6, 2]), torch.Size([6, 5, 3]), torch.Size([20, 6]), torch.Size([6]))
    """

    def __init__(
        self,
        num_channels: int,
        num_classes: int,
        *,
        latent_size: int = 8,
        width: int = 32,
        num_layers: int = 2,
        prior: Any = CauchyGP(),  # noqa: B008
        missing_model: bool = True,
        decay: bool = True,
        dropout_rate: float = 0.3,
        online: bool = False,
        num_static: int = 0,
        duration: float | None = None,
    ) -> None:
        super().__init__()
        self.num_channels = checks.integer("num_channels", num_channels, 1)
        self.num_classes = checks.integer("num_classes", num_classes, 2)
        self.latent_size = checks.integer("latent_size", latent_size, 1)
        checks.integer("num_layers", num_layers, 1)
        checks.integer("width", width, 2)
        check_heads("width", width, NUM_HEADS)
        is_process = callable(getattr(prior, "covariance", None)) and not isinstance(prior, type)
        if prior is not None and not is_process:
            raise TypeError(
                f"prior must have a method covariance(num_steps) or be None, got {prior!r:.80}"
            )
        self.dropout_rate = checks.number("dropout_rate", dropout_rate, least=0, most=1)
        self.online = checks.boolean("online", online)
        self.num_static = checks.integer("num_static", num_static, 0)
        self.duration = checks.optional(checks.number, "duration", duration, above=0)
        if online and duration is None:
            raise ValueError(
                "duration must be a number with online=True, where the last time of a series is "
                "not known before its end, got None"
            )
        self.prior = prior
        sizes = (width, num_layers)
        self.encoder = SeriesTransformer(2 * num_channels, *sizes, 8, causal=True)
        self.to_latent = nn.Linear(width, 2 * latent_size)
        with torch.no_grad():  # draws that are rough are far from the prior
            self.to_latent.bias[latent_size:] = _START_OF_SCALE
        self.decoder = SeriesTransformer(latent_size, *sizes, 3, causal=True)
        self.to_values = nn.Linear(width, 2 * num_channels)
        self.imputer = DecayImputer(num_channels) if checks.boolean("decay", decay) else None
        self.missing_model: nn.Module | None = None
        if checks.boolean("missing_model", missing_model):
            self.missing_model = MLP(num_channels, [width], num_channels, nn.Tanh)
        self.classifier = SeriesTransformer(num_channels, *sizes, 3, causal=online)
        self.to_classes = nn.Linear(width, num_classes)
        self.of_static = MLP(num_static, [width], width, nn.Tanh) if num_static else None

    # The Pyro program ----------------------------------------------------------------------------

    @pyro_method
    def model(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        times: Tensor | None = None,
        lengths: Tensor | None = None,
        static: Tensor | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        """The model, in the plate ``"series"``.

        Its sites are ``"z"``, ``"x"``, ``"noise"`` of the values in the gaps, ``"mask"`` and
        ``"y"``; ``"seen"`` and ``"filled"`` are deterministic. With :meth:`guide`, Pyro's
        :class:`~pyro.infer.RenyiELBO` of order zero is the bound of :meth:`loss`, unless
        ``online``. To hide observed values, use ``obs_dropout(["seen"], rate)(module.model)``.

        :param Tensor x: **Shape:** ``(num_series, num_steps, num_channels)``.
        :param Tensor mask: booleans, true for observed values; by default all are observed.
            **Shape:** as ``x``.
        :param Tensor times: times of the steps, ``>= 0`` and increasing, in any unit; by default
            they count from zero. **Shape:** ``(num_series, num_steps)``.
        :param Tensor lengths: number of steps of each series without padding; by default all.
            **Shape:** ``(num_series,)``.
        :param Tensor static: **Shape:** ``(num_series, num_static)``.
        :param Tensor y: classes, or ``None`` to draw them. **Shape:** ``(num_series,)``, online
            ``(num_series, num_steps)``.
        :returns: the classes.
        """
        series = self._series(x, mask, times, lengths, static)
        if y is not None:
            y = check_labels(y, series, self.num_classes, online=self.online)
        with pyro.plate("series", len(series.x)):
            z = pyro.sample("z", self._prior(series).to_event(1))
            loc, scale = self._decode(z, series)
            values = dist.Normal(loc, scale).mask(series.mask).to_event(2)
            pyro.sample("x", values, obs=series.x)
            noise = pyro.sample("noise", self._noise(series))
            seen = pyro.deterministic("seen", series.mask, event_dim=2)
            filled = pyro.deterministic("filled", self._fill(series, seen, loc + scale * noise), 2)
            if self.missing_model is not None:
                is_seen = dist.Bernoulli(logits=self._missing_logits(filled))
                is_seen = is_seen.mask(series.valid[..., None]).to_event(2)
                pyro.sample("mask", is_seen, obs=seen.to(filled.dtype))
            classes = dist.Categorical(logits=self._classify(series, filled))
            if self.online:
                classes = classes.mask(series.valid).to_event(1)
            found: Tensor = pyro.sample("y", classes, obs=y)
        return found

    @pyro_method
    def guide(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        times: Tensor | None = None,
        lengths: Tensor | None = None,
        static: Tensor | None = None,
        y: Tensor | None = None,
    ) -> None:
        """The guide; arguments as for :meth:`model`."""
        series = self._series(x, mask, times, lengths, static)
        if y is not None:
            check_labels(y, series, self.num_classes, online=self.online)
        with pyro.plate("series", len(series.x)):
            posterior = self._posterior(series).mask(series.valid[:, None, :])
            pyro.sample("z", posterior.to_event(2))
            pyro.sample("noise", self._noise(series))

    # The bound -----------------------------------------------------------------------------------

    def loss(
        self,
        x: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        times: Tensor | None = None,
        lengths: Tensor | None = None,
        static: Tensor | None = None,
        *,
        num_latents: int = 5,
        num_draws: int = 1,
        dropout_rate: float | None = None,
    ) -> Tensor:
        """Compute the negative bound in nats, averaged over series, with PyTorch's generator.

        :param Tensor x: as for :meth:`model`, like the next arguments.
        :param Tensor y: classes.
        :param Tensor mask: true for observed values.
        :param Tensor times: times of the steps.
        :param Tensor lengths: lengths of the series.
        :param Tensor static: features of series.
        :param int num_latents: number of latent draws.
        :param int num_draws: number of draws of the gaps for each of them, over which bounds are
            averaged.
        :param float dropout_rate: used instead of the model's own rate.
        """
        checks.integer("num_latents", num_latents, 1)
        checks.integer("num_draws", num_draws, 1)
        rate = checks.optional(checks.number, "dropout_rate", dropout_rate, least=0, most=1)
        series = self._series(x, mask, times, lengths, static)
        y = check_labels(y, series, self.num_classes, online=self.online)
        return self._loss(series, y, num_latents, num_draws, rate)

    def _loss(
        self, series: Series, y: Tensor, num_latents: int, num_draws: int, rate: float | None = None
    ) -> Tensor:
        """The loss of checked series."""
        rate = self.dropout_rate if rate is None else rate
        log_ratio, loc, scale = self._draw_latents(series, num_latents)
        logits, log_missing = self._draw_gaps(series, loc, scale, num_draws, rate)
        terms = log_ratio + log_missing  # of each step
        log_label = logits.log_softmax(-1)
        label = y.expand(log_label.shape[:-1])[..., None]
        log_label = log_label.gather(-1, label)[..., 0]
        if not self.online:
            return -_log_mean_exp(terms.sum(-1) + log_label).mean()
        terms = terms + torch.where(series.valid, log_label, 0.0)
        bounds = _log_mean_exp(terms.cumsum(-1)).mean(0)
        each = torch.where(series.valid, bounds, 0.0).sum(-1) / series.lengths
        return -each.mean()

    def _draw_latents(self, series: Series, num_latents: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw latents; return their log weights by step, without labels, and the loc and scale."""
        posterior = self._posterior(series)
        z = posterior.rsample((num_latents,))
        loc, scale = self._decode(z, series)
        log_guide = torch.where(series.valid[:, None], posterior.log_prob(z), 0.0).sum(-2)
        log_prior = self._prior(series).log_prob_by_step(z).sum(-2)
        log_values = dist.Normal(loc, scale).log_prob(series.x)
        log_values = torch.where(series.mask, log_values, 0.0).sum(-1)
        return log_values + log_prior - log_guide, loc, scale

    def _draw_gaps(
        self, series: Series, loc: Tensor, scale: Tensor, num_draws: int, rate: float
    ) -> tuple[Tensor, Tensor]:
        """Logits of the classes and the log probability of what is missing."""
        generated = dist.Normal(loc, scale).rsample((num_draws,))
        seen = series.mask.expand(generated.shape)
        if rate:
            with poutine.block(), obs_dropout(["seen"], rate):
                seen = pyro.deterministic("seen", seen, event_dim=2)
        filled = self._fill(series, seen, generated)
        log_missing = loc.new_zeros(())
        if self.missing_model is not None:
            logits = self._missing_logits(filled)
            error = functional.binary_cross_entropy_with_logits(
                logits, seen.to(logits), reduction="none"
            )
            log_missing = -torch.where(series.valid[..., None], error, 0.0).sum(-1)
        return self._classify(series, filled), log_missing

    # Predictions ---------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        times: Tensor | None = None,
        lengths: Tensor | None = None,
        static: Tensor | None = None,
        *,
        num_latents: int = 20,
        num_draws: int = 5,
        batch_size: int = 64,
        seed: int | None = None,
    ) -> SeriesPrediction:
        r"""Predict classes and values, with nothing hidden.

        Latent draws have the weights :math:`p(x_o \mid z) p(z) / q(z \mid x_o)`, which depend
        neither on labels nor on the model of the mask; online, the weights at each step are those
        of the earlier steps.

        :param Tensor x: as for :meth:`model`, like the next arguments.
        :param Tensor mask: true for observed values.
        :param Tensor times: times of the steps.
        :param Tensor lengths: lengths of the series.
        :param Tensor static: features of series.
        :param int num_latents: number of latent draws.
        :param int num_draws: number of draws of the gaps for each of them.
        :param int batch_size: number of series at a time.
        :param int seed: seed of the draws; by default they come from PyTorch's generator.
        """
        checks.integer("num_latents", num_latents, 1)
        checks.integer("num_draws", num_draws, 1)
        checks.integer("batch_size", batch_size, 1)
        series = self._series(x, mask, times, lengths, static)
        with seeded(seed):
            parts = [
                self._predict(series.rows(index), num_latents, num_draws)
                for index in torch.arange(len(series.x)).split(batch_size)
            ]
        probs, loc, scale = (torch.cat([part[i] for part in parts]) for i in range(3))
        weights, ess = torch.cat([p.weights for p in parts], 1), torch.cat([p.ess for p in parts])
        return SeriesPrediction(probs, loc, scale, weights, ess)

    def _predict(self, series: Series, num_latents: int, num_draws: int) -> SeriesPrediction:
        """Predictions for checked series."""
        log_ratio, loc, scale = self._draw_latents(series, num_latents)
        log_ratio = log_ratio.cumsum(-1) if self.online else log_ratio.sum(-1)
        weights = log_ratio.softmax(0)
        logits, _ = self._draw_gaps(series, loc, scale, num_draws, 0.0)
        probs = (weights[..., None] * logits.softmax(-1)).sum(1).mean(0)
        each = weights[..., None] if self.online else weights[..., None, None]
        mean = (each * loc).sum(0)
        variance = (each * (scale.square() + (loc - mean).square())).sum(0)
        return SeriesPrediction(
            probs, mean, variance.sqrt(), weights, 1.0 / weights.square().sum(0)
        )

    # Training ------------------------------------------------------------------------------------

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        times: Tensor | None = None,
        lengths: Tensor | None = None,
        static: Tensor | None = None,
        *,
        num_latents: int = 5,
        num_draws: int = 1,
        **training: Unpack[SeriesTraining],
    ) -> list[float]:
        """Train with Adam, with a learning rate that falls to zero along a cosine.

        :param Tensor x: as for :meth:`model`, like the next arguments.
        :param Tensor y: classes.
        :param Tensor mask: true for observed values.
        :param Tensor times: times of the steps.
        :param Tensor lengths: lengths of the series.
        :param Tensor static: features of series.
        :param int num_latents: number of latent draws.
        :param int num_draws: number of draws of the gaps for each of them.
        :param training: options of :class:`SeriesTraining`.
        :returns: the loss of every step.
        :raises TrainingDiverged: if loss or gradient are not finite.
        :raises CheckpointError: if the checkpoint is damaged or belongs to another training.
        """
        checks.integer("num_latents", num_latents, 1)
        checks.integer("num_draws", num_draws, 1)
        series = self._series(x, mask, times, lengths, static)
        y = check_labels(y, series, self.num_classes, online=self.online)

        def validate(part: Series, labels: Tensor) -> Tensor:
            probs = self._predict(part, num_latents, 1).probs
            log_probs = probs.gather(-1, labels[..., None])[..., 0].clamp(min=1e-30).log()
            return -(log_probs[part.valid] if self.online else log_probs).sum()

        return train(
            self,
            lambda part, labels: self._loss(part, labels, num_latents, num_draws),
            validate,
            series,
            y,
            **training,
        )

    # Parts ---------------------------------------------------------------------------------------

    def _series(self, x: Any, mask: Any, times: Any, lengths: Any, static: Any) -> Series:
        """Checked series."""
        return as_series(
            x,
            mask,
            times,
            lengths,
            static,
            num_channels=self.num_channels,
            num_static=self.num_static,
            duration=self.duration,
            like=self.to_classes.weight,
        )

    def _prior(self, series: Series) -> Any:
        """Of each latent channel. **Shape:** batch ``(num_series, latent_size)``."""
        num_steps, like = series.x.shape[1], series.x
        if self.prior is None:
            factor = torch.eye(num_steps, device=like.device, dtype=like.dtype)
        else:
            covariance = checks.as_tensor(
                "prior", self.prior.covariance(num_steps), f"({num_steps}, {num_steps})"
            )
            factor, failed = torch.linalg.cholesky_ex(covariance.double())
            if bool(failed):
                raise ValueError(
                    f"prior must have a covariance of {num_steps} steps that is positive definite "
                    f"in {covariance.dtype}, got {self.prior!r:.80}: a larger jitter makes it so"
                )
            factor = factor.to(like)
        lengths = series.lengths[:, None].expand(-1, self.latent_size)
        return PaddedMultivariateNormal(factor, lengths, validate_args=False)

    def _noise(self, series: Series) -> Any:
        """Standard normal variables of all cells."""
        return dist.Normal(torch.zeros_like(series.x), 1.0).to_event(2)

    def _posterior(self, series: Series) -> Any:
        """Normal distributions of the latent steps. **Shape:** ``(num_series, latent_size, T)``."""
        inputs = torch.cat([series.x, series.mask.to(series.x)], -1)
        hidden = self.encoder(inputs, series.times, series.valid)
        loc, scale = self.to_latent(hidden).mT.chunk(2, -2)
        least = _LEAST_POSTERIOR_SCALE
        return dist.Normal(loc, least + (1.0 - least) * functional.softplus(scale))

    def _decode(self, z: Tensor, series: Series) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of all cells."""
        hidden = self.decoder(z.mT, series.times, series.valid)
        loc, scale = self.to_values(hidden).chunk(2, -1)
        return loc, _LEAST_SCALE + (1.0 - _LEAST_SCALE) * functional.softplus(scale)

    def _fill(self, series: Series, seen: Tensor, generated: Tensor) -> Tensor:
        """Series without gaps, zero at padding."""
        if self.imputer is None:
            filled = torch.where(seen, series.x, generated)
        else:
            filled = fade(self.imputer, series.x, seen, generated, series.times)
        return torch.where(series.valid[..., None], filled, 0.0)

    def _missing_logits(self, filled: Tensor) -> Tensor:
        """Logits of seeing each cell."""
        assert self.missing_model is not None
        logits: Tensor = self.missing_model(filled)
        return logits

    def _classify(self, series: Series, filled: Tensor) -> Tensor:
        """Logits of the classes."""
        first = None if self.of_static is None else self.of_static(series.static)
        hidden = self.classifier(filled, series.times, series.valid, first)
        if self.online:
            hidden = hidden[..., -series.x.shape[1] :, :]
        else:
            valid = series.valid
            if first is not None:
                valid = functional.pad(valid, (1, 0), value=True)
            total = torch.where(valid[..., None], hidden, 0.0).sum(-2)
            hidden = total / valid.sum(-1, keepdim=True)
        logits: Tensor = self.to_classes(hidden)
        return logits


def _log_mean_exp(terms: Tensor) -> Tensor:
    """Over latent draws, the second dimension."""
    number = torch.tensor(terms.shape[1], dtype=terms.dtype)
    return terms.logsumexp(1) - number.log().to(terms)
