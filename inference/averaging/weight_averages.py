"""Averages of weights along a trajectory, and the normal distribution around them."""

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self

import torch
from pyro.distributions import LowRankMultivariateNormal
from pyro.params.param_store import ParamStoreDict
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from pyro_ext._lib import checks

_KINDS = "a module, a vector, a dict of tensors or a parameter store"
_LEAST_VARIANCE = 1e-12


def swag_distribution(
    mean: Tensor, variance: Tensor, deviations: Tensor, scale: float = 1.0
) -> LowRankMultivariateNormal:
    r"""Normal distribution of weights around their average, of low rank plus diagonal [1].

    .. math:: N\bigl(m, \; c \, (\tfrac12 \operatorname{diag}(v)
              + \tfrac{1}{2 (R - 1)} D D^\top)\bigr)

    :param Tensor mean: :math:`m`. **Shape:** ``(size,)``.
    :param Tensor variance: :math:`v`; values below 1e-12 are raised to it. **Shape:** ``(size,)``.
    :param Tensor deviations: :math:`D^\top`, of the last weights. **Shape:** ``(R, size)``.
    :param float scale: :math:`c`.
    :raises ValueError: for fewer than two deviations, or negative variances.

    [1] W. J. Maddox, T. Garipov, P. Izmailov, D. Vetrov, A. G. Wilson (2019),
    A simple baseline for Bayesian uncertainty in deep learning.

    Example::

        >>> deviations = torch.tensor([[0.3], [-0.1], [0.2], [-0.4]])
        >>> swag_distribution(torch.zeros(1), torch.tensor([0.05]), deviations).variance
        tensor([0.0750])
    """
    checks.number("scale", scale, above=0)
    mean = checks.as_tensor("mean", mean, "(size,)", finite=True)
    variance = checks.as_tensor("variance", variance, f"({len(mean)},)", finite=True, like=mean)
    deviations = checks.as_tensor(
        "deviations", deviations, f"(R, {len(mean)})", finite=True, like=mean
    )
    if not bool((variance >= 0).all()):
        raise ValueError(f"variance must not be negative, got {float(variance.min())}")
    if len(deviations) < 2:
        raise ValueError(f"deviations must be at least two, got {checks.shown(deviations)}")
    factor = deviations.mT * math.sqrt(scale / (2 * (len(deviations) - 1)))
    diagonal = scale * variance.clamp(min=_LEAST_VARIANCE) / 2
    return LowRankMultivariateNormal(mean, factor, diagonal, validate_args=False)


class SWAState(NamedTuple):
    """Number and mean of the weights so far."""

    num_collected: Tensor
    mean: Tensor

    @staticmethod
    def init(vector: Tensor) -> "SWAState":
        """Of no weights yet, in double precision where the device has it."""
        dtype = torch.float32 if vector.device.type == "mps" else torch.float64
        num_collected = torch.zeros((), dtype=torch.int64, device=vector.device)
        return SWAState(num_collected, torch.zeros_like(vector, dtype=dtype))

    @torch.no_grad()
    def update_(self, vector: Tensor) -> None:
        """Take in weights, ``(size,)``."""
        self.num_collected.add_(1)
        self.mean.add_((vector - self.mean) / self.num_collected)


class SWAGState(NamedTuple):
    r"""Moments of the weights so far, updated in place by new weights.

    :param Tensor num_collected: number of collected weights. **Shape:** ``()``.
    :param Tensor mean: :math:`m`. **Shape:** ``(size,)``.
    :param Tensor squares: sums of squared distances from the mean. **Shape:** ``(size,)``.
    :param Tensor latest: :math:`w_j - m_j` for the latest weights; row :math:`(j - 1) \bmod R`
        holds that of weights :math:`j`. **Shape:** ``(max_rank, size)``.

    Example::

        >>> state = SWAGState.init(torch.zeros(1, dtype=torch.float64), max_rank=3)
        >>> for weight in (1.0, 3.0, 2.0):
        ...     state.update_(torch.tensor([weight]))
        >>> state.mean.item(), round(state.variance.item(), 4), state.deviations.flatten().tolist()
        (2.0, 0.6667, [0.0, 1.0, 0.0])
    """

    num_collected: Tensor
    mean: Tensor
    squares: Tensor
    latest: Tensor

    @staticmethod
    def init(vector: Tensor, max_rank: int) -> "SWAGState":
        """Make the state before the first weights.

        :param Tensor vector: has the size, type and device of the weights. **Shape:** ``(size,)``.
        :param int max_rank: :math:`R`.
        """
        num_collected, mean = SWAState.init(vector)
        latest = vector.new_zeros((max_rank, len(vector)))
        return SWAGState(num_collected, mean, torch.zeros_like(mean), latest)

    @torch.no_grad()
    def update_(self, vector: Tensor) -> None:
        """Add weights.

        :param Tensor vector: **Shape:** ``(size,)``.
        """
        before = vector - self.mean
        SWAState(self.num_collected, self.mean).update_(vector)
        after = vector - self.mean
        self.squares.add_(before * after)  # sums of squares less the mean's would cancel
        self.latest[(int(self.num_collected) - 1) % len(self.latest)] = after.to(self.latest.dtype)

    @property
    def variance(self) -> Tensor:
        """:math:`v`, at least 1e-12. **Shape:** ``(size,)``."""
        return (self.squares / self.num_collected).clamp(min=_LEAST_VARIANCE)

    @property
    def deviations(self) -> Tensor:
        """Deviations of the latest weights, oldest first. **Shape:** ``(R, size)``."""
        number, rank = int(self.num_collected), len(self.latest)
        return self.latest[:number] if number < rank else self.latest.roll(-(number % rank), 0)


class SWA:
    """The average of weights along a trajectory, which needs a single copy of them [2].

    Weights come from a module, with all of its parameters; a flat vector; tensors by name; or a
    Pyro parameter store, with unconstrained values. Pass the same kind each time. Averages are in
    double precision. (:class:`torch.optim.swa_utils.AveragedModel` only averages modules, in the
    precision of their parameters.)

    Put the average into the ``stateful`` of a :class:`~pyro_ext.inference.Trainer` whose loss
    collects weights: training that resumes from a checkpoint then gives the same average, bit for
    bit.

    [2] P. Izmailov, D. Podoprikhin, T. Garipov, D. Vetrov, A. G. Wilson (2018),
    Averaging weights leads to wider optima and better generalization.

    Example::

        >>> from pyro_ext.inference import Trainer
        >>> network, x = torch.nn.Linear(2, 1), torch.randn(20, 2)
        >>> swa = SWA()
        >>> trainer = Trainer(network, stateful=[swa], seed=0)
        >>> def loss():
        ...     if trainer.num_steps >= 50 and trainer.num_steps % 5 == 0:
        ...         swa.collect(network)
        ...     return (network(x)[:, 0] - x.sum(-1)).square().mean()
        >>> _ = trainer.run(loss, 100, progress=False)
        >>> swa.num_collected, swa.mean.shape, swa.module(network)(x).shape
        (10, torch.Size([3]), torch.Size([20, 1]))
    """

    def __init__(self) -> None:
        self._layout: dict[str, tuple[torch.Size, torch.dtype]] = {}
        """Shapes and types by name; a flat vector has none."""
        self._like: Tensor = torch.empty(0)
        """Type and device of the vector."""
        self._state: Any = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_collected} collected)"

    def _init(self, vector: Tensor) -> Any:
        return SWAState.init(vector)

    # Collecting ----------------------------------------------------------------------------------

    def collect(self, weights: Any) -> Self:
        """Add weights to the average; they are neither changed nor stored.

        :param weights: a module, a vector, tensors by name or a parameter store.
        :returns: the collector itself.
        :raises ValueError: for weights that are not finite, or of other shapes than earlier ones.
        :raises TypeError: for anything that holds no weights, or weights that are not floating
            point.
        """
        tensors = _tensors_of(weights)
        for name, tensor in tensors.items():
            argument = f"weights[{name!r}]" if name else "weights"
            if not tensor.is_floating_point():
                raise TypeError(
                    f"{argument} must be floating-point numbers, "
                    f"got {checks.shown(tensor)}: from a state "
                    "dict, pass the parameters alone, or pass the module"
                )
            checks.all_finite(argument, tensor)
        layout = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        if self._state is None:
            self._layout = layout
        elif layout != self._layout:
            before, now = (_described(one) for one in (self._layout, layout))
            name = next(n for n in [*before, *now] if before.get(n) != now.get(n))
            raise ValueError(
                f"weights must be like those before, which had {before.get(name, 'nothing')} for "
                f"{name!r}, got {now.get(name, 'nothing')}"
            )
        vector = _flat([tensors[name] for name in self._layout])
        if self._state is None:
            self._state = self._init(vector)
        elif vector.device != self._like.device:  # a state that was loaded from a file
            self._state = type(self._state)(*[part.to(vector.device) for part in self._state])
        self._like = vector[:0].clone()
        self._state.update_(vector)
        return self

    # What was collected --------------------------------------------------------------------------

    @property
    def num_collected(self) -> int:
        """Number of weights collected so far."""
        return 0 if self._state is None else int(self._state.num_collected)

    @property
    def mean(self) -> Tensor:
        """The average. **Shape:** ``(size,)``."""
        mean: Tensor = self._collected(1).mean
        return mean.to(self._like.dtype)

    def weights(self, vector: Tensor | None = None) -> dict[str, Tensor]:
        """Tensors by name, in the shapes and types that were collected; a vector is named ``""``.

        :param Tensor vector: weights, such as a draw; by default the average. **Shape:**
            ``(size,)``.
        """
        vector = self._vector(vector)
        sizes = [shape.numel() for shape, _ in self._layout.values()]
        pairs = zip(self._layout.items(), vector.split(sizes), strict=True)
        return {name: part.reshape(shape).to(dtype) for (name, (shape, dtype)), part in pairs}

    def module(
        self,
        module: nn.Module,
        vector: Tensor | None = None,
        *,
        batches: Iterable[Any] | None = None,
    ) -> nn.Module:
        """Copy a module, with the average or other weights for its parameters.

        :param torch.nn.Module module: has tensors with the names that were collected; others are
            copied unchanged. A vector sets all of its parameters, in order.
        :param Tensor vector: weights, such as a draw; by default the average. **Shape:**
            ``(size,)``.
        :param batches: minibatches of inputs, as for :func:`update_batch_norm`. A module with batch
            normalization requires them, since its statistics belong to other weights.
        :raises ValueError: if tensors do not fit, or if minibatches are missing.
        """
        checks.instance("module", module, nn.Module, "a torch.nn.Module")
        weights = self.weights(vector)
        check_statistics(module, batches)
        new = copy.deepcopy(module)
        own = dict(new.named_parameters()) | dict(new.named_buffers())
        if list(weights) == [""]:
            parameters = dict(new.named_parameters())
            sizes = [parameter.numel() for parameter in parameters.values()]
            if sum(sizes) != len(weights[""]):
                raise ValueError(
                    f"module must have {len(weights[''])} parameters in all, got {sum(sizes)}"
                )
            weights = dict(zip(parameters, weights[""].split(sizes), strict=True))
            weights = {name: part.view_as(parameters[name]) for name, part in weights.items()}
        for name, value in weights.items():
            if name not in own or own[name].shape != value.shape:
                raise ValueError(
                    f"module must have {name!r} of the shape {tuple(value.shape)}, got "
                    f"{checks.shown(own[name].detach()) if name in own else 'a module without it'}"
                )
        with torch.no_grad():
            for name, value in weights.items():
                own[name].copy_(value)
        return new if batches is None else _with_statistics(new, batches)

    # State ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which :meth:`load_state_dict` resumes."""
        if self._state is None:
            return {}
        layout = [[n, list(s), str(d).removeprefix("torch.")] for n, (s, d) in self._layout.items()]
        return {"layout": layout, "like": self._like, **self._state._asdict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state.

        :param Mapping state: what :meth:`state_dict` returned.
        :raises ValueError: for the state of another kind of object.
        """
        checks.mapping("state", state, "what state_dict returned")
        if not state:
            self._layout, self._state = {}, None
            return
        wanted = self._init(torch.empty(0))
        if set(state) != {"layout", "like", *wanted._fields} or not all(
            isinstance(state[name], Tensor) for name in ("like", *wanted._fields)
        ):
            raise ValueError(f"state must be one of {type(self).__name__}, got {state!r:.80}")
        for name, value in wanted._asdict().items():
            if value.dim() == 2 and len(value) != len(state[name]):
                raise ValueError(
                    f"state must be of the same max_rank, {len(value)}, got {len(state[name])}"
                )
        self._layout = {n: (torch.Size(s), getattr(torch, d)) for n, s, d in state["layout"]}
        self._like = state["like"].clone()
        self._state = type(wanted)(*[state[name].clone() for name in wanted._fields])

    # Helpers -------------------------------------------------------------------------------------

    def _collected(self, least: int) -> Any:
        if self.num_collected < least:
            raise RuntimeError(
                f"weights must be collected at least {('once', 'twice')[least - 1]} before, they "
                f"were {self.num_collected} times: call collect(...)"
            )
        return self._state

    def _vector(self, vector: Tensor | None) -> Tensor:
        size = len(self._collected(1).mean)
        if vector is None:
            return self.mean
        return checks.as_tensor("vector", vector, f"({size},)", finite=True, like=self._like)


class SWAG(SWA):
    r"""The normal distribution of weights along a trajectory [1].

    This is :func:`swag_distribution` with the mean :math:`m` and variance :math:`v` of all weights.
    :math:`D` holds the deviations :math:`w_j - m_j` of the last :math:`R` weights from the mean at
    that time. Memory holds about :math:`R + 4` copies of the weights, however many are collected.
    It collects the same kinds of weights as :class:`SWA`.

    :param int max_rank: :math:`R`.
    :raises ValueError: for a rank less than two.

    Example::

        >>> swag = SWAG(max_rank=3)
        >>> for weight in (1.0, 3.0, 2.0):
        ...     _ = swag.collect(torch.tensor([weight]))
        >>> swag.mean, swag.variance, swag.deviations.flatten()
        (tensor([2.]), tensor([0.6667]), tensor([0., 1., 0.]))
        >>> swag.distribution(scale=2.0).variance  # 2 (.6667 / 2 + 1 / 4)
        tensor([1.1667])
        >>> swag.sample(sample_shape=(5,), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([5, 1])
    """

    def __init__(self, max_rank: int = 20) -> None:
        super().__init__()
        self.max_rank = checks.integer("max_rank", max_rank, 2)

    def _init(self, vector: Tensor) -> Any:
        return SWAGState.init(vector, self.max_rank)

    @property
    def variance(self) -> Tensor:
        """Variance of each weight along the trajectory, at least 1e-12. **Shape:** ``(size,)``."""
        variance: Tensor = self._collected(1).variance
        return variance.to(self._like.dtype)

    @property
    def deviations(self) -> Tensor:
        """Deviations of the last weights, oldest first. **Shape:** ``(at most R, size)``."""
        deviations: Tensor = self._collected(1).deviations
        return deviations

    def distribution(self, scale: float = 1.0) -> LowRankMultivariateNormal:
        """The distribution of the flat vector of weights.

        :param float scale: factor of the covariance.
        """
        self._collected(2)
        return swag_distribution(self.mean, self.variance, self.deviations, scale)

    def sample(
        self,
        scale: float = 1.0,
        sample_shape: tuple[int, ...] = (),
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw weights.

        :param float scale: factor of the covariance; zero gives the average.
        :param tuple sample_shape: shape of the draws.
        :param torch.Generator generator: generator for the draws; by default PyTorch's global one.
        :returns: **Shape:** ``(*sample_shape, size)``.
        """
        checks.number("scale", scale, least=0)
        checks.optional(checks.instance, "generator", generator, torch.Generator, "a generator")
        self._collected(2)
        shape, deviations = checks.as_size("sample_shape", sample_shape), self.deviations
        options: dict[str, Any] = {"generator": generator, "dtype": self._like.dtype}
        device = self._like.device if generator is None else generator.device
        noise = torch.randn((*shape, len(self.mean)), device=device, **options).to(self._like)
        low = torch.randn((*shape, len(deviations)), device=device, **options).to(self._like)
        step = (self.variance / 2).sqrt() * noise
        step = step + low @ deviations / math.sqrt(2 * (len(deviations) - 1))
        return self.mean + math.sqrt(scale) * step


# Batch normalization -----------------------------------------------------------------------------


def has_batch_norm(module: nn.Module) -> bool:
    """Tell whether a module has batch norm layers with running statistics."""
    return any(
        isinstance(part, _BatchNorm) and part.track_running_stats for part in module.modules()
    )


def check_statistics(module: nn.Module, batches: Iterable[Any] | None) -> None:
    """Refuse other weights for a module with batch normalization, without minibatches."""
    if batches is None and has_batch_norm(module):
        raise ValueError(
            "batches must be minibatches of inputs for a module with batch normalization, whose "
            "statistics are those of other weights, got None"
        )


def update_batch_norm(module: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Copy a module and recompute its batch normalization statistics for its weights.

    The statistics are averages over all minibatches, by :func:`torch.optim.swa_utils.update_bn`.

    :param torch.nn.Module module: any module; one without batch normalization is copied unchanged.
    :param batches: minibatches of inputs, such as a data loader; if a minibatch is a list or tuple,
        its first part is the input.
    :raises ValueError: if there is no minibatch.

    Example::

        >>> network = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.BatchNorm1d(1))
        >>> batch = torch.tensor([[1.0], [3.0]])
        >>> new = update_batch_norm(network, [batch])
        >>> bool(torch.isclose(new[1].running_mean, network[0](batch).mean()))
        True
    """
    checks.instance("module", module, nn.Module, "a torch.nn.Module")
    return _with_statistics(copy.deepcopy(module), batches)


def _with_statistics(module: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """The module itself, with statistics of minibatches."""
    if isinstance(batches, Tensor | str | Mapping) or not isinstance(batches, Iterable):
        raise TypeError(f"batches must be minibatches of inputs, got {checks.shown(batches)}")
    if not has_batch_norm(module):
        return module
    last: Any = None

    def checked() -> Iterable[Any]:
        nonlocal last
        for batch in batches:
            last = batch[0] if isinstance(batch, list | tuple) and len(batch) else batch
            checks.instance("batches", last, (Tensor, Mapping), "minibatches of inputs")
            yield batch

    try:
        update_bn(checked(), module)
    except RuntimeError as error:
        raise ValueError(
            f"batches must hold inputs that the module takes, got {checks.shown(last)} and {error}"
        ) from error
    if last is None:
        raise ValueError(f"batches must hold a minibatch at least, got {checks.shown(batches)}")
    for name, value in module.named_buffers():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ValueError(
                f"batches must be finite, "
                f"got {name!r} that is not from {checks.shown(last)}; if they "
                "are, the weights are too large: has the training diverged?"
            )
    return module


def _tensors_of(weights: Any) -> dict[str, Tensor]:
    """Tensors by name; a vector has none."""
    if isinstance(weights, nn.Module | ParamStoreDict):
        named = dict(weights.named_parameters())
        if not named:
            raise ValueError(f"weights must have parameters, got {type(weights).__name__} of none")
        weights = named
    elif isinstance(weights, Mapping):
        weights = checks.tensors("weights", weights)
    elif isinstance(weights, Tensor):
        weights = {"": checks.as_tensor("weights", weights, "(size,)")}
    else:
        raise TypeError(f"weights must be {_KINDS}, got {checks.shown(weights)}")
    return {name: value.detach() for name, value in weights.items()}


def _described(layout: Mapping[str, tuple[torch.Size, torch.dtype]]) -> dict[str, str]:
    return {name: f"{dtype} of shape {tuple(shape)}" for name, (shape, dtype) in layout.items()}


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    """One vector of all, on the device of the first, in single precision at least."""
    parts = [tensor.reshape(-1) for tensor in tensors]
    vector = torch.cat([part.to(parts[0].device) for part in parts])
    return vector.to(torch.promote_types(vector.dtype, torch.float32))
