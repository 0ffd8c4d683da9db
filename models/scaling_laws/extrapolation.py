"""Extrapolation of a measured scaling curve by a network that learned the prior."""

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext._lib.files import read_bytes
from pyro_ext._lib.pyplot import axes_of, open_frame
from pyro_ext.distributions import BarDistribution
from pyro_ext.inference.amortized.prior_fitted import PriorDataFittedNetwork
from pyro_ext.models.scaling_laws.prior import SMALLEST_SIZE, scaling_curve_prior

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEAST_POINTS = 4
_FARTHEST = 0.02  # least place of the last size that is given, where the horizon is at one
_NEAREST_HORIZON = 1.25
_LARGEST_RISE = 0.15
_USUAL = (0.2, 1.2)  # first values under the prior
_COLOR = "#2a6f97"


@dataclass(frozen=True, eq=False)
class Extrapolation:
    """Prediction of a curve at larger sizes.

    :param Tensor x: the given sizes, increasing. **Shape:** ``(n,)``.
    :param Tensor y: the values there. **Shape:** ``(n,)``.
    :param Tensor query: the sizes to predict at. **Shape:** ``(num_queries,)``.
    :param BarDistribution prediction: distributions of the values there, in units of ``scale``.
    :param float scale: number by which values are divided for the network.
    :param float horizon: the size at the end of the network's inputs.

    Example::

        >>> x = torch.tensor([100.0, 200.0, 400.0, 800.0, 1600.0])
        >>> found = extrapolate(x, 3.0 * x**-0.4 + 0.1, [3200.0, 6400.0])
        >>> low, high = found.interval(0.9)
        >>> bool(((low < found.median) & (found.median < high)).all())
        True
    """

    x: Tensor
    y: Tensor
    query: Tensor
    prediction: BarDistribution
    scale: float
    horizon: float

    @property
    def median(self) -> Tensor:
        """Medians. **Shape:** ``(num_queries,)``."""
        return self.quantile(0.5)

    def quantile(self, prob: float) -> Tensor:
        """Quantiles, clipped at zero.

        :param float prob: a probability.
        :returns: **Shape:** ``(num_queries,)``.
        """
        prob = checks.number("prob", prob, above=0, below=1)
        quantile = self.prediction.icdf(self.prediction.logits.new_tensor(prob))
        return (self.scale * quantile).clamp(min=0.0)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Lower and upper ends of central intervals.

        :param float level: probability of the intervals.
        """
        level = checks.number("level", level, above=0, below=1)
        return self.quantile(0.5 - level / 2.0), self.quantile(0.5 + level / 2.0)

    def log_prob(self, y: Any) -> Tensor:
        """Log densities of values measured at the queries.

        :param Tensor y: **Shape:** ``(num_queries,)``.
        """
        logits = self.prediction.logits
        shape = f"({len(self.query)},)"
        values = checks.as_tensor("y", y, shape, like=logits, finite=True).to(logits)
        return self.prediction.log_prob(values / self.scale) - torch.tensor(self.scale).log()

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Plot points, medians, and central 50% and 90% intervals.

        :param Axes ax: where to plot; by default a new figure.
        :returns: the axes.
        """
        axes = axes_of("Extrapolation.plot", ax, (5.6, 3.6))
        order = self.query.argsort()
        size = self.query[order].numpy()
        for level, alpha in ((0.9, 0.15), (0.5, 0.3)):
            low, high = (end[order].numpy() for end in self.interval(level))
            label = f"{100 * level:g} %"
            axes.fill_between(size, low, high, color=_COLOR, alpha=alpha, lw=0, label=label)
        axes.plot(size, self.median[order].numpy(), color=_COLOR, label="median")
        axes.plot(self.x.numpy(), self.y.numpy(), "o", color="black", ms=4, label="given")
        axes.set(xscale="log", yscale="log", xlabel="size", ylabel="value")
        axes.legend(frameon=False, fontsize=8)
        return open_frame(axes)


def pretrained_network() -> PriorDataFittedNetwork:
    """Load the network that ships with the package.

    ``python -m tools.pretrain_scaling_laws`` trains it, only on draws of
    :func:`scaling_curve_prior`.

    Example::

        >>> pretrained_network().num_bars
        200
    """
    path = Path(__file__).with_name("scaling_curves.safetensors")
    return PriorDataFittedNetwork.load(path, scaling_curve_prior)


def extrapolate(
    x: Any,
    y: Any,
    query: Any = None,
    *,
    horizon: float | None = None,
    scale: float | None = None,
    network: PriorDataFittedNetwork | None = None,
) -> Extrapolation:
    r"""Predict a curve of error or loss at larger sizes, without training [1].

    The network has learned from curves of :func:`scaling_curve_prior`, and is valid only for such
    curves: those that fall, perhaps with breaks or a rise in between. Sizes from the smallest given
    one to the horizon are mapped to the network's inputs, from 0.01 to 1, so that the choice of the
    horizon matters. If there are more points than in training, points with evenly spaced ranks are
    used.

    :param Tensor x: positive sizes, of data or of a model; at least four different ones.
        **Shape:** ``(n,)``.
    :param Tensor y: nonnegative errors or losses at these sizes. **Shape:** ``(n,)``.
    :param Tensor query: sizes to predict at, none below the smallest; by default 25 sizes from the
        largest to the horizon. **Shape:** ``(num_queries,)``.
    :param float horizon: the largest size that matters. By default the largest query, but at least
        1.25 times the largest given size; without queries, ten times that size.
    :param float scale: number by which values are divided. By default one if the largest value is
        between 0.2 and 1.2, as for an error rate, and otherwise the largest value.
    :param PriorDataFittedNetwork network: by default the one that ships with the package.
    :returns: the prediction.
    :raises ValueError: for a curve outside of what the network was trained on: too few points,
        sizes that are not positive, values that are negative, rise, or are too large, or queries
        that are too far away.

    [1] D. Lee et al. (2025), Bayesian neural scaling law extrapolation with prior-data fitted
    networks.

    Example::

        >>> x = torch.tensor([100.0, 200.0, 400.0, 800.0, 1600.0])
        >>> found = extrapolate(x, 3.0 * x**-0.4 + 0.1, horizon=16_000)
        >>> found.query.shape, bool(0.1 < found.median[-1] < 0.2)
        (torch.Size([25]), True)
    """
    x, y = _checked_curve(x, y)
    horizon = checks.optional(checks.number, "horizon", horizon, above=float(x[-1]))
    asked, end = _queries(x, query, horizon)
    scale = checks.optional(checks.number, "scale", scale, above=0)
    if scale is None:
        largest = float(y.max())
        scale = 1.0 if _USUAL[0] <= largest <= _USUAL[1] else largest
    if network is None:
        network = pretrained_network()
    checks.instance("network", network, PriorDataFittedNetwork, "a PriorDataFittedNetwork or None")
    _check_values(y, scale, network)
    most = int(network.context[1] * network.num_points[1])
    chosen = torch.linspace(0, len(x) - 1, min(most, len(x))).round().long()
    places = [_places(size, x[0], end).float() for size in (x[chosen], asked)]
    prediction = network.predictive(places[0], (y[chosen] / scale).float(), places[1])
    return Extrapolation(x, y, asked, prediction, scale, end)


def _places(size: Tensor, first: Tensor, end: float) -> Tensor:
    """Inputs of the network, by a linear map."""
    return SMALLEST_SIZE + (1.0 - SMALLEST_SIZE) * (size - first) / (end - first)


def _checked_curve(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Sizes and values by rising size."""
    sizes = checks.as_tensor(
        "x", x, "(n,)", finite=True, allow_empty=True, dtype=torch.float64
    ).cpu()
    values = checks.as_tensor(
        "y", y, "(n,)", finite=True, allow_empty=True, dtype=torch.float64
    ).cpu()
    if sizes.shape != values.shape:
        raise ValueError(
            f"y must have one value for each size of x, got {checks.shown(y)} for {checks.shown(x)}"
        )
    if not bool((sizes > 0).all()):
        raise ValueError(f"x must be sizes > 0, got {float(sizes.min()):g}")
    if len(sizes.unique()) < _LEAST_POINTS:
        raise ValueError(
            f"x must be at least {_LEAST_POINTS} different sizes, got {len(sizes.unique())}: "
            "fewer say too little of a curve"
        )
    if not bool((values >= 0).all()):
        raise ValueError(f"y must be errors or losses >= 0, got {float(values.min()):g}")
    if not bool(values.any()):
        raise ValueError("y must not be zero everywhere, got only zeros")
    order = sizes.argsort(stable=True)
    return sizes[order], values[order]


def _queries(x: Tensor, query: Any, horizon: float | None) -> tuple[Tensor, float]:
    """Queries, and the size at the end of the network's inputs."""
    last = float(x[-1])
    if query is None:
        end = 10.0 * last if horizon is None else horizon
        asked = torch.linspace(math.log(last), math.log(end), 25, dtype=torch.float64).exp()
        asked[0], asked[-1] = last, end
    else:
        asked = checks.as_tensor(
            "query", query, "(num_queries,)", finite=True, dtype=torch.float64
        ).cpu()
        largest = float(asked.max())
        end = max(largest, _NEAREST_HORIZON * last) if horizon is None else horizon
        if largest > end:
            raise ValueError(f"query must be at most the horizon {end:g}, got {largest:g}")
        if float(asked.min()) < float(x[0]):
            raise ValueError(
                f"query must be at least the smallest size that is given, {float(x[0]):g}, got "
                f"{float(asked.min()):g}: the network predicts from small sizes to large ones"
            )
    if float(_places(x[-1], x[0], end)) < _FARTHEST:
        farthest = x[0] + (x[-1] - x[0]) * (1.0 - SMALLEST_SIZE) / (_FARTHEST - SMALLEST_SIZE)
        what = "query" if horizon is None and query is not None else "horizon"
        raise ValueError(
            f"{what} must be at most {float(farthest):.6g} for sizes up to {last:g}, got {end:g}: "
            "the network was not trained to look so far ahead"
        )
    return asked, end


def _check_values(y: Tensor, scale: float, network: PriorDataFittedNetwork) -> None:
    """Check that values are of curves that the network has seen."""
    assert network.borders is not None
    most = float(network.borders[-1]) * scale
    if float(y.max()) > most:
        raise ValueError(
            f"y must be at most {most:g} with scale={scale:g}, which is the most that the network "
            f"was trained on, got {float(y.max()):g}"
        )
    rise = float(y.max() - y[0]) / scale
    if rise > _LARGEST_RISE:
        raise ValueError(
            f"y must not rise above its first value, {float(y[0]):g}, by more than "
            f"{_LARGEST_RISE * scale:g}, got {float(y.max()):g}: the network was trained on curves "
            "of error or loss, which fall"
        )


def read_curve(
    path: str | Path, x: str | int = 0, y: str | int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Read a curve from a file of comma-separated values.

    :param path: the file, with or without a line of names.
    :param x: name or number of the column of sizes.
    :param y: name or number of the column of values.
    :returns: sizes and values ``(n,)``, and the sizes of rows without a value, to predict.
    :raises ValueError: if the file lacks a column, or holds anything but numbers.
    """
    checks.instance("path", path, (str, Path), "a path")
    try:
        lines = io.StringIO(read_bytes(path).decode("utf-8-sig"), newline="")
        rows = [row for row in csv.reader(lines) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"path must be a file of comma-separated values, got {path}: {error}"
        ) from error
    names: list[str] = []
    if rows and not any(_is_number(cell) for cell in rows[0]):
        names = [cell.strip() for cell in rows.pop(0)]
    most = max((len(row) for row in rows), default=0)
    columns = [_column(argument, one, names, most) for argument, one in (("x", x), ("y", y))]
    sizes, values, asked = [], [], []
    for row in rows:
        cells = [row[column].strip() if column < len(row) else "" for column in columns]
        for cell in cells[: 2 if cells[1] else 1]:
            if not _is_number(cell):
                raise ValueError(f"path must hold numbers, got {cell!r:.40} in {path}")
        if cells[1]:
            sizes.append(float(cells[0]))
            values.append(float(cells[1]))
        else:
            asked.append(float(cells[0]))
    return (
        torch.tensor(sizes, dtype=torch.float64),
        torch.tensor(values, dtype=torch.float64),
        torch.tensor(asked, dtype=torch.float64),
    )


def _column(argument: str, column: Any, names: list[str], most: int) -> int:
    """Number of a column."""
    if isinstance(column, str):
        if column not in names:
            raise ValueError(f"{argument} must be one of the columns {names}, got {column!r}")
        return names.index(column)
    number = checks.integer(argument, column, 0)
    if number >= most:
        raise ValueError(f"{argument} must be one of the {most} columns, from 0 on, got {column}")
    return number


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
