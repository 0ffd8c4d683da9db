"""Piecewise uniform distributions with tails that cover the real line."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, constraints, kl_divergence, register_kl

from pyro_ext._lib import checks
from pyro_ext.distributions.bases import ParametricDistribution, ScalarDistribution

_HALF_NORMAL_MEDIAN = 0.6744897501960817
_HALF_NORMAL_MEAN = math.sqrt(2.0 / math.pi)


class BarDistribution(ParametricDistribution, ScalarDistribution):
    r"""A number that falls into bar :math:`k` with probability :math:`\mathrm{softmax}(l)_k` [1].

    Inside a bar, the density is uniform between the borders :math:`b_k` and :math:`b_{k+1}`. The
    first and the last bar are half-normal tails instead: one extends down from :math:`b_1`, the
    other up from :math:`b_{K-1}`. Half of a tail's probability lies within the outermost border, so
    that the scales are :math:`(b_1 - b_0) / 0.67449` and :math:`(b_K - b_{K-1}) / 0.67449`.
    Quantiles are exact, in the tails too.

    :param Tensor logits: log probabilities of the bars, up to a constant. **Shape:**
        ``(*batch, num_bars)``.
    :param Tensor borders: borders of the bars, increasing. **Shape:** ``(num_bars + 1,)``.
    :raises ValueError: if the borders do not increase, or there is not exactly one border more than
        there are logits.

    [1] S. Müller, N. Hollmann, S. Pineda Arango, J. Grabocka, F. Hutter (2022),
    Transformers can do Bayesian inference.

    Example::

        >>> bars = BarDistribution(torch.zeros(4), torch.linspace(0.0, 1.0, 5))
        >>> bars.mean, bars.icdf(torch.tensor([0.25, 0.5]))
        (tensor(0.5000), tensor([0.2500, 0.5000]))
        >>> bars.log_prob(torch.tensor([0.3, 2.0])).exp().round(decimals=4)
        tensor([1.0000, 0.0018])
    """

    arg_constraints = {"logits": constraints.real_vector}
    support = constraints.real

    logits: Tensor
    borders: Tensor

    def __init__(self, logits: Any, borders: Any, validate_args: bool | None = None) -> None:
        logits = checks.as_tensor("logits", logits, "(*batch, num_bars)")
        if not logits.is_floating_point():
            logits = logits.to(torch.get_default_dtype())
        borders = checks.as_tensor("borders", borders, "(num_bars + 1,)", like=logits).to(
            logits.dtype
        )
        num_bars = logits.shape[-1]
        if num_bars < 2 or len(borders) != num_bars + 1:
            raise ValueError(
                "borders must have one element more than logits, which must have at least 2, "
                f"got {checks.shown(borders)} for {num_bars} bars"
            )
        check_borders("borders", borders)
        self.borders = borders
        super().__init__(
            {"logits": logits}, {"logits": 1}, logits.shape[:-1], torch.Size(), validate_args
        )

    @property
    def num_bars(self) -> int:
        """Number of bars."""
        return self.logits.shape[-1]

    @property
    def probs(self) -> Tensor:
        """Probabilities of the bars. **Shape:** ``(*batch, num_bars)``."""
        return self.logits.softmax(-1)

    @property
    def mean(self) -> Tensor:
        """Mean."""
        return (self.probs * self._bar_moments()[0]).sum(-1)

    @property
    def variance(self) -> Tensor:
        """Variance."""
        means, variances = self._bar_moments()
        apart = means - self.mean.unsqueeze(-1)
        return (self.probs * (variances + apart.square())).sum(-1)

    def entropy(self) -> Tensor:
        """Differential entropy."""
        inner, (low, high) = self.borders.diff().log(), self._scales()
        tail = 0.5 + 0.5 * math.log(math.pi / 2.0)
        inner = torch.cat([(low.log() + tail)[None], inner[1:-1], (high.log() + tail)[None]])
        log_probs = self.logits.log_softmax(-1)
        return (log_probs.exp() * (inner - log_probs)).sum(-1)

    def icdf(self, value: Tensor) -> Tensor:
        """Return quantiles in closed form, with gradients."""
        if self._validate_args:
            checks.instance("value", value, Tensor, "a tensor of probabilities")
            checks.as_tensor("value", value)
            if not bool(((value > 0) & (value < 1)).all()):
                raise ValueError(f"value must hold probabilities in (0, 1), got {value!r:.80}")
        probs = self.probs
        below = probs.cumsum(-1)
        value = self._like_batch(value.to(probs))
        number = (value.unsqueeze(-1) >= below[..., :-1]).sum(-1)
        prob = self._chosen(probs, number).clamp(min=torch.finfo(probs.dtype).tiny)
        left = self._chosen(below, number) - prob
        low, width = self.borders[number], self.borders.diff()[number]
        inside = low + width * ((value - left) / prob).clamp(0.0, 1.0)
        first, last = self._scales()
        tiny = torch.finfo(probs.dtype).tiny
        is_first, is_last = number == 0, number == self.num_bars - 1
        # Where neither tail is meant, a fraction that has a finite gradient there.
        down = torch.where(is_first, 0.5 * value / prob, 0.25).clamp(tiny, 0.5)
        up = torch.where(is_last, 0.5 * (1.0 - value) / prob, 0.25).clamp(tiny, 0.5)
        inside = torch.where(is_first, self.borders[1] + first * torch.special.ndtri(down), inside)
        return torch.where(is_last, self.borders[-2] - last * torch.special.ndtri(up), inside)

    def _rsample(self, shape: torch.Size) -> Tensor:
        """Quantiles of uniform numbers, which depend on the logits without a jump."""
        limits = torch.finfo(self.logits.dtype)
        uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        return self.icdf(uniform.clamp(limits.tiny, 1.0 - 0.5 * limits.eps))

    def _log_prob(self, value: Tensor) -> Tensor:
        number = self._number_of(value)
        log_prob = self._chosen(self.logits.log_softmax(-1), number)
        inside = log_prob - self.borders.diff().log()[number]
        first, last = self._scales()
        down = ((self.borders[1] - value) / first).clamp(min=0.0)
        up = ((value - self.borders[-2]) / last).clamp(min=0.0)
        of_two = math.log(2.0) - 0.5 * math.log(2.0 * math.pi)
        inside = torch.where(
            number == 0, log_prob + of_two - first.log() - 0.5 * down.square(), inside
        )
        is_last = number == self.num_bars - 1
        return torch.where(is_last, log_prob + of_two - last.log() - 0.5 * up.square(), inside)

    def _cdf(self, value: Tensor) -> Tensor:
        probs, number = self.probs, self._number_of(value)
        prob = self._chosen(probs, number)
        left = self._chosen(probs.cumsum(-1), number) - prob
        low, width = self.borders[number], self.borders.diff()[number]
        inside = left + prob * ((value - low) / width).clamp(0.0, 1.0)
        first, last = self._scales()
        down = ((self.borders[1] - value) / first).clamp(min=0.0) * math.sqrt(0.5)
        up = ((value - self.borders[-2]) / last).clamp(min=0.0) * math.sqrt(0.5)
        inside = torch.where(number == 0, prob * torch.special.erfc(down), inside)
        is_last = number == self.num_bars - 1
        return torch.where(is_last, 1.0 - prob * torch.special.erfc(up), inside)

    def _bar_moments(self) -> tuple[Tensor, Tensor]:
        """Means and variances inside each bar."""
        width = self.borders.diff()
        means, variances = self.borders[:-1] + 0.5 * width, width.square() / 12.0
        scales = torch.stack(self._scales())
        low, high = (
            self.borders[[1, -2]] + scales.new_tensor([-1.0, 1.0]) * _HALF_NORMAL_MEAN * scales
        )
        first, last = (1.0 - 2.0 / math.pi) * scales.square()
        means = torch.cat([low[None], means[1:-1], high[None]])
        return means, torch.cat([first[None], variances[1:-1], last[None]])

    def _scales(self) -> tuple[Tensor, Tensor]:
        """Scales of the two half-normal distributions."""
        width = self.borders.diff() / _HALF_NORMAL_MEDIAN
        return width[0], width[-1]

    def _number_of(self, value: Tensor) -> Tensor:
        """The number of the bar that each value is in."""
        inner = self.borders[1:-1]
        number = torch.bucketize(value.detach().contiguous(), inner, right=True)
        return self._like_batch(number)

    def _like_batch(self, value: Tensor) -> Tensor:
        """A value for each distribution; the function for shapes alone imports much of PyTorch."""
        each: Tensor = torch.broadcast_tensors(value, self.logits[..., 0])[0]
        return each

    def _chosen(self, rows: Tensor, number: Tensor) -> Tensor:
        """The entry of each row that is numbered."""
        rows = rows.expand(*number.shape, self.num_bars)
        return rows.gather(-1, number.unsqueeze(-1)).squeeze(-1)


@register_kl(BarDistribution, BarDistribution)  # type: ignore[untyped-decorator]
def _kl_bars(p: BarDistribution, q: BarDistribution) -> Tensor:
    """That of the bars, which have to be the same."""
    if not torch.equal(p.borders, q.borders):
        raise NotImplementedError("the KL divergence of bar distributions requires equal borders")
    bars: tuple[Any, ...] = tuple(Categorical(logits=each.logits) for each in (p, q))
    divergence: Tensor = kl_divergence(*bars)
    return divergence


def bar_borders(values: Any, num_bars: int) -> Tensor:
    """Choose borders so that every bar holds equally many values.

    Each inner border is the midpoint of two neighboring values. Each outermost border is the median
    of the values in its bar, because the tails of :class:`BarDistribution` have half of their
    probability within it. The smallest and the largest value would make the tails several times too
    wide, and wider the more values there are.

    :param Tensor values: draws of the quantity to predict. **Shape:** any.
    :param int num_bars: number of bars, at least two.
    :returns: the borders. **Shape:** ``(num_bars + 1,)``.
    :raises ValueError: if there are too few values, or too many are equal.

    Example::

        >>> bar_borders(torch.arange(9.0), 3)
        tensor([1.0000, 2.5000, 5.5000, 7.0000])
    """
    num_bars = checks.integer("num_bars", num_bars, 2)
    ordered = checks.as_tensor("values", values, finite=True).flatten().sort().values
    if not ordered.is_floating_point():
        ordered = ordered.to(torch.get_default_dtype())
    if len(ordered) < 2 * num_bars:
        raise ValueError(
            f"values must have at least {2 * num_bars} elements for {num_bars} bars, "
            f"got {len(ordered)}"
        )
    steps = torch.arange(1, num_bars, device=ordered.device)
    at = steps * len(ordered) // num_bars
    inner = 0.5 * (ordered[at - 1] + ordered[at])
    size = len(ordered) // num_bars
    middle = torch.tensor([(size - 1) // 2, size // 2], device=ordered.device)
    low, high = ordered[middle].mean(), ordered[-size:][middle].mean()
    borders = torch.cat([low[None], inner, high[None]])
    if not bool((borders.diff() > 0).all()):
        raise ValueError(
            f"values must differ enough for {num_bars} bars, got {len(ordered)} values with too "
            "many equal ones: use fewer bars"
        )
    return borders


def check_borders(argument: str, borders: Tensor) -> None:
    """Check that borders are finite and increasing."""
    if not bool(borders.isfinite().all() & (borders.diff() > 0).all()):
        raise ValueError(f"{argument} must be finite and increasing, got {borders!r:.80}")
