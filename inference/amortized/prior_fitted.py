r"""Prior-data fitted networks: networks that learn once, from a prior, to predict for any data.

S. Müller, N. Hollmann, S. Pineda Arango, J. Grabocka, F. Hutter (2022), Transformers can do
Bayesian inference.
"""

import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, Unpack

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from pyro_ext._lib import checks
from pyro_ext._lib.hints import refuses_moved
from pyro_ext._lib.trained_range import warn_outside
from pyro_ext.checkpoint.files import CheckpointError, check_folder_of, read_tensors, write_tensors
from pyro_ext.distributions import BarDistribution, bar_borders
from pyro_ext.distributions.bars import check_borders
from pyro_ext.inference.amortized.prior_fitted_transformer import PriorFittedTransformer
from pyro_ext.inference.amortized.vectorized_draws import OwnMemory, can_be_vectorized, vectorized
from pyro_ext.inference.training import Trainer
from pyro_ext.inference.training.options import TrainingOptions
from pyro_ext.random import fresh_seed, seeded, spawn_seed

_NUM_BARS = 200
_LEAST_CONTEXT = 2
_FORMAT = "pyro_ext prior-data fitted network"


class _Curves(NamedTuple):
    """Data sets that a prior has drawn, with as many points each."""

    x: Tensor
    y: Tensor
    num_context: int


@refuses_moved
class PriorDataFittedNetwork:
    r"""Predicts with a network that has learned a prior from its draws [1].

    A Pyro model defines what data look like: at inputs ``x`` of shape ``(n,)`` or
    ``(n, num_features)``, it draws values at the site ``y``, of shape ``(n,)``, through any other
    sites. The network sees the first points of such a draw and predicts the others,

    .. math::
        \min_\theta\; -\mathrm{E} \log q_\theta(Y^* \mid X^*, C), \qquad C = (X, Y),

    so that the minimum is the posterior predictive distribution of each value, for any data, in one
    pass. With ``regress_context=True``, it also predicts the given points, which adds
    :math:`-\mathrm{E} \log q_\theta(Y \mid X, C)` and keeps predictions smooth at the end of the
    given points [2]. Use this if queries lie beyond the given points. It rewards repeating the
    given values, including their noise, so that predictions among given points become
    overconfident.

    Predictions are valid for data that the prior might have drawn, with numbers of points as in
    training; elsewhere they are meaningless, and a warning states the valid range. They are
    marginal predictions of single values, not joint ones.

    :param Callable prior: a Pyro model of ``x``. If it has a parameter ``num_context``, it receives
        the number of context points. Many draws are made at once by :func:`torch.vmap` if that
        works, and otherwise one by one. ``None`` for a network that only predicts.
    :param torch.nn.Module net: maps ``(xc, yc, xq)`` to logits like
        :class:`PriorFittedTransformer`, which is the default for inputs with one feature. Another
        network declares its number of features in the attribute ``num_features``, or has one.
    :param Tensor borders: borders of the bars of the predictions, as for
        :class:`~pyro_ext.distributions.BarDistribution`; by default bars of equal probability under
        the prior. The default borders are found when training begins, along with the units of the
        default network. **Shape:** ``(num_bars + 1,)``.
    :param Callable inputs: draws inputs, given the number of data sets and the number of points of
        each, as a tensor ``(num_sets, n)`` or ``(num_sets, n, num_features)``. Increasing inputs
        teach the network to extrapolate, others to interpolate. By default inputs are uniform on
        (0, 1).
    :param Callable sampler: draws values of many data sets at once, given inputs and
        ``num_context=...``, from the same distribution as the prior, but faster.
    :param int num_bars: number of bars; by default that of ``net`` or ``borders``, or 200.
    :param tuple num_points: smallest and largest number of points, uniform on a logarithmic scale.
    :param tuple context: smallest and largest fraction of points that are given; at least two
        points are given.
    :param int batch_size: number of data sets in a step.
    :param bool regress_context: whether to predict the given points, too; see above.
    :param int num_for_borders: number of data sets from which borders are found.
    :param int seed: seed of the weights, the draws and the training.
    :raises TypeError: for arguments of a wrong type.
    :raises ValueError: for numbers out of range.

    [1] S. Müller, N. Hollmann, S. Pineda Arango, J. Grabocka, F. Hutter (2022),
    Transformers can do Bayesian inference.

    [2] D. Lee, D. B. Lee, S. Adriaensen, J. Lee, S. J. Hwang, F. Hutter, S. J. Kim, H. B. Lee
    (2025), Bayesian neural scaling law extrapolation with prior-data fitted networks.

    Example::

        >>> def prior(x):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(slope * x, 0.1).to_event(1))
        >>> pfn = PriorDataFittedNetwork(prior, num_bars=20, num_points=(4, 8), seed=0)
        >>> pfn = pfn.fit(5, progress=False)
        >>> x = torch.tensor([0.2, 0.4, 0.6])
        >>> prediction = pfn.predictive(x, 0.5 * x, torch.tensor([0.8, 1.0]))
        >>> prediction.batch_shape, prediction.icdf(torch.tensor(0.5)).shape
        (torch.Size([2]), torch.Size([2]))
    """

    def __init__(
        self,
        prior: Callable[..., Any] | None,
        net: nn.Module | None = None,
        borders: Any = None,
        *,
        inputs: Callable[[int, int], Tensor] | None = None,
        sampler: Callable[..., Tensor] | None = None,
        num_bars: int | None = None,
        num_points: Sequence[int] = (24, 60),
        context: Sequence[float] = (0.1, 0.9),
        batch_size: int = 32,
        regress_context: bool = False,
        num_for_borders: int = 5_000,
        seed: int | None = None,
    ) -> None:
        if prior is not None:
            checks.function("prior", prior, "a Pyro model or None")
        self.prior = prior
        checks.optional(checks.function, "inputs", inputs, "a function of two numbers")
        checks.optional(checks.function, "sampler", sampler, "a function of inputs")
        self.inputs, self.sampler = inputs, sampler
        low, high = (checks.integer("num_points", n, 2) for n in _pair("num_points", num_points))
        if not _LEAST_CONTEXT < low <= high:
            raise ValueError(
                f"num_points must rise and be more than {_LEAST_CONTEXT}, got "
                f"{checks.shown(num_points)}"
            )
        self.num_points = low, high
        least, most = (
            checks.number("context", part, least=0, below=1) for part in _pair("context", context)
        )
        if least > most:
            raise ValueError(f"context must rise, got {checks.shown(context)}")
        self.context = least, most
        self.batch_size = checks.integer("batch_size", batch_size, 1)
        self.regress_context = checks.boolean("regress_context", regress_context)
        self.num_for_borders = checks.integer("num_for_borders", num_for_borders, 1)
        self.seed = fresh_seed(seed)
        self.losses: list[float] = []
        """The loss of each step of training."""
        checks.optional(checks.integer, "num_bars", num_bars, 2)
        self.borders: Tensor | None = None
        """Borders of the bars, or ``None`` before they are found."""
        if borders is not None:
            self.borders = checks.as_tensor("borders", borders, "(num_bars + 1,)", finite=True)
            check_borders("borders", self.borders)
        checks.optional(checks.instance, "net", net, nn.Module, "a torch.nn.Module or None")
        known = {
            "num_bars": num_bars,
            "borders": None if self.borders is None else len(self.borders) - 1,
            "net": getattr(net, "num_bars", None),
        }
        given = {name: number for name, number in known.items() if number is not None}
        if len(set(given.values())) > 1:
            raise ValueError(f"num_bars, borders and net must be of as many bars, got {given}")
        self.num_bars: int = next(iter(given.values()), _NUM_BARS)
        if net is None:
            with seeded(self.seed):
                net = PriorFittedTransformer(self.num_bars)
        self.net: nn.Module = net
        self.num_features: int = getattr(net, "num_features", 1)
        self.input_range: Tensor | None = None
        """Least and greatest inputs of the training. **Shape:** ``(2, num_features)``."""
        self._is_vectorized: bool | None = None

    def __repr__(self) -> str:
        state = "no borders yet" if self.borders is None else f"{len(self.losses)} steps"
        return f"PriorDataFittedNetwork({self.num_bars} bars, {state})"

    # Training ------------------------------------------------------------------------------------

    def draw(
        self, num_sets: int, num_points: int, num_context: int, *, seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw data sets from the prior.

        :param int num_sets: number of data sets.
        :param int num_points: number of points of each.
        :param int num_context: number of points that are given.
        :param int seed: seed of the draws; ``None`` uses PyTorch's global generator.
        :returns: inputs ``(num_sets, n)`` or ``(num_sets, n, num_features)``, and values
            ``(num_sets, n)``.
        :raises ValueError: if the prior has no such site, or its values have another shape.
        """
        checks.integer("num_sets", num_sets, 1)
        checks.integer("num_points", num_points, 2)
        if checks.integer("num_context", num_context, 1) >= num_points:
            raise ValueError(
                f"num_context must be less than num_points={num_points}, got {num_context}"
            )
        with seeded(seed), torch.no_grad():
            x = self._inputs(num_sets, num_points)
            y = self._values(x, num_context)
        if tuple(y.shape) != (num_sets, num_points) or not bool(y.isfinite().all()):
            what = "sampler" if self.sampler is not None else "prior"
            raise ValueError(
                f"{what} must draw finite values of the shape {(num_points,)} at 'y', "
                f"one for each input, got {checks.shown(y)} for {num_sets} data sets"
            )
        return x, y

    def fit(
        self,
        num_steps: int,
        *,
        learning_rate: float = 1e-3,
        warm_up: float = 0.25,
        **training: Unpack[TrainingOptions],
    ) -> Self:
        """Train the network on draws of the prior, each of which is used once.

        Another call continues from the current weights with a new schedule.

        :param int num_steps: number of steps.
        :param float learning_rate: largest learning rate of AdamW. The rate first increases, and
            then decreases to zero along a cosine.
        :param float warm_up: fraction of the steps during which the rate increases.
        :param training: options of :class:`~pyro_ext.inference.training.TrainingOptions`.
        :returns: the network itself.
        :raises TrainingDiverged: if the loss or a gradient is not finite.
        """
        num_steps = checks.integer("num_steps", num_steps, 0)
        checks.number("learning_rate", learning_rate, above=0)
        checks.number("warm_up", warm_up, least=0, below=1)
        if self.borders is None:
            self._find_borders()
        self.input_range = self._find_input_range()
        seed = spawn_seed(self.seed, 1, len(self.losses))
        rate = partial(_rise_and_fall, num_steps=num_steps, warm_up=warm_up)
        trainer = Trainer(
            self.net,
            partial(torch.optim.AdamW, lr=learning_rate, weight_decay=0.0),
            scheduler=partial(LambdaLR, lr_lambda=rate),
            max_norm=1.0,
            identity=None
            if training.get("checkpoint") is None
            else self._identity(num_steps) | {"warm_up": warm_up},
            seed=seed,
        )
        self.net.train()
        try:
            trainer.run(
                self._loss,
                num_steps,
                self._curves,
                description="Prior-data fitted network",
                **training,
            )
        finally:
            self.net.eval()
            self.losses.extend(trainer.losses)
        return self

    def _identity(self, num_steps: int) -> dict[str, Any]:
        """Describe what a checkpoint is compared by: settings and rounded draws from the prior."""
        names = ("num_points", "context", "regress_context")
        curves = self._curves(spawn_seed(self.seed, 3), 2)
        drawn = {"borders": self._known_borders(curves.y), "inputs": curves.x, "values": curves.y}
        return {
            "num_steps": num_steps,
            "batch_size": self.batch_size,
            "least_context": _LEAST_CONTEXT,
            **{name: getattr(self, name) for name in names},
            **{name: [f"{v:.3g}" for v in part.flatten().tolist()] for name, part in drawn.items()},
        }

    def _loss(self, curves: _Curves) -> Tensor:
        """Mean negative log density of values, with those given where they are asked for."""
        x, y, number = curves
        logits = self.net(
            x[:, :number], y[:, :number], x if self.regress_context else x[:, number:]
        )
        target = y if self.regress_context else y[:, number:]
        bars = BarDistribution(logits, self._known_borders(y), validate_args=False)
        return -bars.log_prob(target).mean()

    def _curves(self, seed: int, num_sets: int | None = None) -> _Curves:
        """Data sets of random sizes, inputs with a dimension of features."""
        with seeded(seed):
            low, high = (math.log(number) for number in self.num_points)
            num_points = round(math.exp(low + (high - low) * float(torch.rand(()))))
            least, most = (int(part * num_points) for part in self.context)
            num_context = least + int(torch.randint(most - least + 1, ()))
            num_context = min(max(num_context, _LEAST_CONTEXT), num_points - 1)
            x, y = self.draw(num_sets or self.batch_size, num_points, num_context)
        weights = next(self.net.parameters())
        return _Curves(self._with_features(x).to(weights), y.to(weights), num_context)

    def _find_borders(self) -> None:
        """Take borders from the prior, and the units of the network's own inputs and values."""
        inputs, values = [], []
        number = 0
        while number < self.num_for_borders:
            curves = self._curves(
                spawn_seed(self.seed, 2, number), min(500, self.num_for_borders - number)
            )
            number += len(curves.x)
            inputs.append(curves.x.flatten(0, 1))
            values.append(curves.y.flatten())
        x, y = torch.cat(inputs), torch.cat(values)
        self.borders = bar_borders(y, self.num_bars)
        if isinstance(self.net, PriorFittedTransformer):
            self.net.take_units(x, y)

    def _find_input_range(self) -> Tensor:
        """Ends of the inputs, by drawing some where they are not uniform on (0, 1)."""
        if self.inputs is None:
            return torch.tensor([[0.0], [1.0]]).repeat(1, self.num_features)
        with seeded(spawn_seed(self.seed, 4)):
            x = self._with_features(self._inputs(500, self.num_points[1]))
        return torch.stack([x.amin((0, 1)), x.amax((0, 1))])

    def _inputs(self, num_sets: int, num_points: int) -> Tensor:
        if self.inputs is not None:
            return checks.as_tensor("inputs", self.inputs(num_sets, num_points), finite=True)
        x = torch.rand(num_sets, num_points, self.num_features)
        return x.squeeze(-1) if self.num_features == 1 else x

    def _values(self, x: Tensor, num_context: int) -> Tensor:
        if self.sampler is not None:
            return checks.as_tensor("sampler", self.sampler(x, num_context=num_context))
        if self.prior is None:
            raise ValueError("prior must be a Pyro model to draw from or to train on, got None")
        draw_one = partial(self._draw_one, told=self._told(num_context))
        if self._is_vectorized is None:
            with torch.random.fork_rng():
                self._is_vectorized = can_be_vectorized(draw_one, x[:2])
        if self._is_vectorized:
            return vectorized(draw_one, x)
        return torch.stack([draw_one(row) for row in x])

    def _told(self, num_context: int) -> dict[str, int]:
        """Return the keyword arguments of the prior."""
        assert self.prior is not None
        parameters = inspect.signature(self.prior).parameters
        return {"num_context": num_context} if "num_context" in parameters else {}

    def _draw_one(self, x: Tensor, told: Mapping[str, Any]) -> Tensor:
        """Values of one data set."""
        with poutine.block(hide_all=True), OwnMemory(x):
            tracer: Any = poutine.trace(self.prior)
            trace = tracer.get_trace(x, **told)
        if "y" not in trace.nodes:
            names = [name for name, node in trace.nodes.items() if node["type"] == "sample"]
            raise ValueError(f"prior must have the site 'y', got the sites {names}")
        values: Tensor = trace.nodes["y"]["value"]
        return values

    # Prediction ----------------------------------------------------------------------------------

    @torch.no_grad()
    def predictive(self, xc: Any, yc: Any, xq: Any) -> BarDistribution:
        """Predict values at queries from given points.

        :param Tensor xc: inputs of the given points. **Shape:** ``(*batch, num_context)``, or
            ``(*batch, num_context, num_features)`` if there are several features.
        :param Tensor yc: values of the given points. **Shape:** ``(*batch, num_context)``.
        :param Tensor xq: inputs of the queries. **Shape:** as ``xc``, with any number of points.
        :returns: distributions of the values. **Batch shape:** ``(*batch, num_queries)``.
        :raises ValueError: for numbers that are not finite, shapes that do not fit, or an untrained
            network.
        """
        weights = next(self.net.parameters())
        values = checks.as_tensor("yc", yc, "(*batch, num_context)", like=weights, finite=True).to(
            weights
        )
        given = self._as_inputs("xc", xc, values.dim()).to(weights)
        asked = self._as_inputs("xq", xq, values.dim()).to(weights)
        if given.shape[:-1] != values.shape:
            raise ValueError(
                f"yc must have one value for each of the inputs xc, "
                f"got {checks.shown(yc)} for {checks.shown(xc)}"
            )
        if asked.shape[:-2] != given.shape[:-2]:
            raise ValueError(
                f"xq must have the leading dimensions of xc, "
                f"got {checks.shown(xq)} for {checks.shown(xc)}"
            )
        borders = self._known_borders(values)
        self._warn_of_reach(given, values, asked, borders)
        self.net.eval()
        return BarDistribution(self.net(given, values, asked), borders)

    def _warn_of_reach(self, given: Tensor, values: Tensor, asked: Tensor, borders: Tensor) -> None:
        """Warn of data that the training has nothing like."""
        if self.input_range is None:  # not trained
            return
        least, most = int(self.context[0] * self.num_points[0]), self.num_points[1]
        numbers = max(least, _LEAST_CONTEXT), min(int(self.context[1] * most), most - 1)
        inputs, number = self.input_range.to(given), given.new_tensor(given.shape[-2])
        warn_outside("the number of points in xc", number, given.new_tensor(numbers))
        warn_outside("xc", given, inputs)
        warn_outside("xq", asked, inputs)
        warn_outside("yc", values, borders[[0, -1]], slack=0.5)

    def _as_inputs(self, name: str, value: Any, num_dims: int) -> Tensor:
        """Inputs with a dimension of features."""
        x = checks.as_tensor(name, value, like=next(self.net.parameters()), finite=True)
        x = x.unsqueeze(-1) if x.dim() == num_dims and self.num_features == 1 else x
        if x.dim() != num_dims + 1 or x.shape[-1] != self.num_features:
            raise ValueError(
                f"{name} must have the shape (*batch, n, {self.num_features}), or (*batch, n) for "
                f"one feature, with the batch of yc, got {checks.shown(value)}"
            )
        if isinstance(self.net, PriorFittedTransformer):
            self.net.check_inputs(name, x)
        return x

    def _with_features(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-1) if x.dim() == 2 else x

    def _known_borders(self, like: Tensor) -> Tensor:
        if self.borders is None:
            raise ValueError("borders must be given or found by fit() first, got None")
        self.borders = self.borders.to(like)
        return self.borders

    # Files ---------------------------------------------------------------------------------------

    def save(self, path: str | Path, **facts: Any) -> None:
        """Save weights and borders to a safetensors file, which cannot execute code.

        :param path: path of the file.
        :param facts: plain values to store with them, such as a description of the training data.
        :raises CheckpointError: if the file cannot be written.
        :raises ValueError: before the borders are known.
        """
        checks.instance("path", path, (str, Path), "a path")
        check_folder_of(Path(path))
        try:
            json.dumps(facts)
        except (TypeError, ValueError) as error:
            raise TypeError(f"facts must be plain values, got {facts!r:.80}: {error}") from error
        borders = self._known_borders(next(self.net.parameters()))
        settings = self.net.settings() if isinstance(self.net, PriorFittedTransformer) else None
        content = {
            "format": _FORMAT,
            "net": settings,
            "num_points": list(self.num_points),
            "context": list(self.context),
            "num_steps": len(self.losses),
            "facts": facts,
        }
        tensors = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        known = {} if self.input_range is None else {"input_range": self.input_range}
        write_tensors(Path(path), {"borders": borders, **known, **tensors}, content)

    @classmethod
    def load(
        cls,
        path: str | Path,
        prior: Callable[..., Any] | None = None,
        net: nn.Module | None = None,
        **options: Any,
    ) -> Self:
        """Load what :meth:`save` wrote.

        :param path: path of the file.
        :param Callable prior: as for the constructor, to train further.
        :param torch.nn.Module net: a network of the same form, if it was not the default one.
        :param options: other keyword arguments of the constructor.
        :raises CheckpointError: if the file is missing, damaged, or holds something else.
        """
        checks.instance("path", path, (str, Path), "a path")
        tensors, content, _ = read_tensors(Path(path))
        if content.get("format") != _FORMAT:
            raise CheckpointError(f"{path} holds no prior-data fitted network")
        checks.optional(checks.instance, "net", net, nn.Module, "a torch.nn.Module or None")
        if net is None:
            if content["net"] is None:
                raise ValueError(f"net must be given, since {path} has weights of one of its own")
            net = PriorFittedTransformer(**content["net"])
        parts = [(name.split(".", 1), value) for name, value in tensors.items()]
        state = {name[1]: value for name, value in parts if name[0] == "net"}
        try:
            net.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"{path} is of another network: {error}") from error
        settings = {name: content[name] for name in ("num_points", "context")}
        pfn = cls(prior, net.eval(), tensors["borders"], **{**settings, **options})
        pfn.input_range = tensors.get("input_range")
        return pfn


def _rise_and_fall(step: int, num_steps: int, warm_up: float) -> float:
    """Learning rate in units of its largest, after some steps."""
    warm_up = max(1.0, warm_up * num_steps)
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    done = (step - warm_up) / max(num_steps - warm_up, 1)
    return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def _pair(argument: str, value: Any) -> Iterator[Any]:
    """Two numbers."""
    numbers = checks.sequence(argument, value, "two numbers", 2)
    if len(numbers) != 2:
        raise ValueError(f"{argument} must be two numbers, got {checks.shown(value)}")
    return iter(numbers)
