"""One network fused from the checkpoints of a training run, with optimized coefficients."""

import copy
import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext._lib.progress import progress_bar
from pyro_ext.checkpoint.files import CheckpointError, locked, read_tensors, write_tensors
from pyro_ext.inference.averaging.bayesian_optimization import BayesianOptimizer
from pyro_ext.inference.averaging.hypervolumes import pareto_mask
from pyro_ext.inference.averaging.weight_averages import check_statistics, update_batch_norm
from pyro_ext.random import fresh_seed

_FORMAT = "fusion 1"
_LEAST = 1e-6  # of an input, since coefficients that are all zero define no average
_SIGNS = {"maximize": 1.0, "minimize": -1.0}


class CheckpointCollector:
    r"""Collects copies of a module's weights at equal spacing in the last part of training.

    Copies include the parameters that require a gradient. Parameters in double precision are copied
    in double precision, all others in single precision. Copies are made after the optimizer steps
    :math:`s_k = \lfloor N (a + (1 - a) k / K) \rfloor` for :math:`k = 1, \dots, K`; the last one is
    made after the last step. Memory holds :math:`K` copies, however many steps there are.

    Put the collector into the ``stateful`` of a :class:`~pyro_ext.inference.Trainer` to resume it
    from a checkpoint.

    :param torch.nn.Module module: the module in training.
    :param int num_steps: :math:`N`, total number of steps of the training.
    :param int num: :math:`K`.
    :param float start: :math:`a`.
    :raises ValueError: for numbers out of range, or a module without trained parameters.

    Example::

        >>> from pyro_ext.inference import Trainer
        >>> network, x = torch.nn.Linear(2, 1), torch.randn(20, 2)
        >>> collector = CheckpointCollector(network, num_steps=20, num=5)
        >>> trainer = Trainer(network, stateful=[collector], seed=0)
        >>> collector.watch(trainer.optimizer)
        >>> _ = trainer.run(lambda: (network(x)[:, 0] - x.sum(-1)).square().mean(), 20)
        >>> collector.steps, collector.weights["weight"].shape
        ([12, 14, 16, 18, 20], torch.Size([5, 1, 2]))
    """

    def __init__(
        self, module: nn.Module, num_steps: int, num: int = 15, *, start: float = 0.5
    ) -> None:
        checks.instance("module", module, nn.Module, "a torch.nn.Module")
        self._parameters = {
            name: parameter
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        if not self._parameters:
            raise ValueError("module must have parameters that require a gradient, got none")
        num_steps = checks.integer("num_steps", num_steps, 1)
        checks.number("start", start, least=0, below=1)
        checks.integer("num", num, 1)
        self.steps = [
            math.floor(num_steps * (start + (1.0 - start) * k / num) + 1e-9)
            for k in range(1, num + 1)
        ]
        """Numbers of the steps after which there is a copy."""
        most = num_steps - math.floor(start * num_steps + 1e-9)
        if num > most:
            raise ValueError(f"num must be at most the {most} steps after the start, got {num}")
        self._num_seen = 0
        self._copies: list[dict[str, Tensor]] = []

    def __repr__(self) -> str:
        return f"CheckpointCollector({len(self._copies)} of {len(self.steps)} collected)"

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Check the weights after each step of an optimizer.

        :param torch.optim.Optimizer optimizer: for example that of a
            :class:`~pyro_ext.inference.Trainer`.
        """
        checks.instance("optimizer", optimizer, torch.optim.Optimizer, "one of torch.optim")
        optimizer.register_step_post_hook(lambda *_: self._look())

    @property
    def weights(self) -> dict[str, Tensor]:
        """Copies by name, in the order of the steps. **Shape:** ``(K, *event)`` each."""
        if not self._copies:
            raise RuntimeError(
                f"weights must be collected before, the first of them after {self.steps[0]} steps: "
                f"there were {self._num_seen} of an optimizer that is watched"
            )
        return {n: torch.stack([one[n] for one in self._copies]) for n in self._parameters}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which :meth:`load_state_dict` resumes."""
        return {"num_seen": self._num_seen, "copies": [dict(one) for one in self._copies]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state.

        :param Mapping state: what :meth:`state_dict` returned.
        :raises ValueError: for the state of another kind of object.
        """
        checks.mapping("state", state, "what state_dict returned")
        if set(state) != {"num_seen", "copies"}:
            raise ValueError(f"state must be of a CheckpointCollector, got {sorted(state)}")
        num_seen = checks.integer('state["num_seen"]', state["num_seen"], 0)
        copies = checks.sequence('state["copies"]', state["copies"], "a list of dicts", 0, Mapping)
        self._num_seen, self._copies = num_seen, [dict(one) for one in copies]

    def _look(self) -> None:
        self._num_seen += 1
        if self._num_seen in self.steps:
            self._copies.append({n: _copy(p) for n, p in self._parameters.items()})


class FusionHistory(NamedTuple):
    """Evaluations: single checkpoints, then a Sobol sequence, then the points of the search.

    :param Tensor coefficients: coefficients of the checkpoints, which sum to one. **Shape:**
        ``(n, K)``.
    :param Tensor values: values of the objectives, as returned. **Shape:** ``(n, J)``.
    :param Tensor normalized: values scaled so that the worst single checkpoint has 0, the best one
        1, and larger is better. **Shape:** ``(n, J)``.
    :param Tensor hypervolume: hypervolume above the worst single checkpoint of each objective,
        after each evaluation; for one objective, the best normalized value so far. **Shape:**
        ``(n,)``.
    :param Tensor is_efficient: whether no other evaluation dominates this one. **Shape:** ``(n,)``.
    """

    coefficients: Tensor
    values: Tensor
    normalized: Tensor
    hypervolume: Tensor
    is_efficient: Tensor


class ModelFusion:
    r"""Averages checkpoints with coefficients found by multi-objective optimization: BOMF [1].

    The network with the smallest loss is often not the one with the best metric. Both are optimized
    together over :math:`w(\delta) = \sum_k \delta_k w_k`, where :math:`\delta = x / \sum_k x_k`
    with :math:`x \in [0, 1]^K`, after scaling them by their values at the single checkpoints. Only
    values of the objectives are needed: accuracy, F1, or a score of generated texts.

    The checkpoints should come from one training run: between networks of different runs lies a
    barrier. Factors of low-rank adapters (LoRA) are averaged separately, as in the paper, which
    differs from averaging their products. The best of many values on few data is optimistic:
    evaluate the result on other data, next to :func:`~pyro_ext.inference.averaging.greedy_soup` of
    the same checkpoints.

    :param torch.nn.Module module: a module with the parameters of the checkpoints; it is not
        changed.
    :param checkpoints: weights by name, **Shape:** ``(K, *event)`` each, such as
        :attr:`CheckpointCollector.weights`; or a list of modules or state dicts.
    :param Callable evaluate: returns the values of a network by objective, such as
        ``{"f1": 0.8, "loss": 0.5}``, or NaN if it cannot tell. The network is in evaluation mode,
        and no gradient is recorded.
    :param Mapping objectives: ``"maximize"`` or ``"minimize"`` for each objective to optimize. The
        first one decides which network is the best.
    :param Iterable batches: minibatches of inputs for a module with batch normalization, whose
        statistics are recomputed for each average, as by
        :func:`~pyro_ext.inference.averaging.update_batch_norm`.
    :param Callable optimizer: :class:`~pyro_ext.inference.averaging.BayesianOptimizer`, for one or
        two objectives, or your own class with the same arguments and methods.
    :param int seed: seed of all that is random; ``None`` takes one from PyTorch's generator.
    :raises ValueError: for checkpoints that do not fit each other or the module, or are not finite.

    [1] C. Jang, H. Lee, J. Kim, J. Lee (2024), Model fusion through Bayesian optimization in
    language model fine-tuning.

    Example::

        >>> network, x = torch.nn.Linear(1, 1, bias=False), torch.linspace(-1.0, 1.0, 50)[:, None]
        >>> def evaluate(network):
        ...     error = (network(x) - 0.3 * x).abs()
        ...     return {"accuracy": (error < 0.1).float().mean(), "loss": error.mean()}
        >>> fusion = ModelFusion(
        ...     network, {"weight": torch.tensor([[[0.0]], [[1.0]]])}, evaluate,
        ...     {"accuracy": "maximize", "loss": "minimize"}, seed=0)
        >>> weight = fusion.run(10, progress=False).best().weight
        >>> bool((weight - 0.3).abs() < 0.02), fusion.history.values.shape
        (True, torch.Size([14, 2]))
    """

    def __init__(
        self,
        module: nn.Module,
        checkpoints: Any,
        evaluate: Callable[[nn.Module], Mapping[str, Any]],
        objectives: Mapping[str, str],
        *,
        batches: Iterable[Any] | None = None,
        optimizer: Callable[..., BayesianOptimizer] = BayesianOptimizer,
        seed: int | None = None,
    ) -> None:
        checks.instance("module", module, nn.Module, "a torch.nn.Module")
        self.module = module
        self.weights = _stacked(module, checkpoints)
        """Weights of the checkpoints by name. **Shape:** ``(K, *event)`` each."""
        self.num_checkpoints = len(next(iter(self.weights.values())))
        checks.function("evaluate", evaluate, "a function of a module")
        self._evaluate = evaluate
        checks.mapping("objectives", objectives, '"maximize" or "minimize" by name')
        if not objectives:
            raise ValueError(f"objectives must be at least one, got {objectives!r}")
        for name, direction in objectives.items():
            checks.choice(f"objectives[{name!r}]", direction, _SIGNS)
        self.objectives = dict(objectives)
        self._signs = torch.tensor([_SIGNS[one] for one in objectives.values()]).double()
        check_statistics(module, batches)
        if batches is not None and (
            not isinstance(batches, Iterable) or isinstance(batches, Tensor | str | Iterator)
        ):
            raise TypeError(
                "batches must be minibatches that can be iterated over again, as a list or data "
                f"loader, got {checks.shown(batches)}"
            )
        self._batches = batches
        checks.function("optimizer", optimizer, "a class such as BayesianOptimizer")
        self._optimizer = optimizer
        self._is_seeded = seed is not None
        self.seed = fresh_seed(seed)
        self._x: list[Tensor] = []
        self._values: list[Tensor] = []
        self._search()  # so that invalid settings raise an error now

    def __repr__(self) -> str:
        return f"ModelFusion({self.num_checkpoints} checkpoints, {len(self._x)} evaluations)"

    # Networks ------------------------------------------------------------------------------------

    def fuse(self, coefficients: Tensor) -> nn.Module:
        """Copy the module, with an average of the checkpoints for its weights.

        :param Tensor coefficients: nonnegative coefficients. They are divided by their sum, so that
            equal ones give the uniform average. **Shape:** ``(K,)``.
        :raises ValueError: for a negative coefficient, or if none is positive.
        """
        return self._fuse(coefficients, {})

    def evaluate(self, coefficients: Tensor) -> dict[str, float]:
        """Evaluate the objectives of an average, without recording them.

        :param Tensor coefficients: as for :meth:`fuse`. **Shape:** ``(K,)``.
        :raises ValueError: if an objective is missing.
        """
        # What is not averaged, such as a model that has adapters, is not copied.
        kept = {
            id(value): value
            for name, value in self.module.named_parameters(remove_duplicate=False)
            if name not in self.weights
        }
        fused = self._fuse(coefficients, kept).eval()
        with torch.no_grad():
            found = self._evaluate(fused)
        if not isinstance(found, Mapping) or not set(self.objectives) <= set(found):
            raise ValueError(
                f"evaluate must return the objectives {list(self.objectives)} by name, got "
                f"{found!r:.80}"
            )
        return {
            name: float(checks.as_tensor(f"evaluate()[{name!r}]", found[name], "()").detach())
            for name in self.objectives
        }

    def _fuse(self, coefficients: Tensor, memo: dict[int, Any]) -> nn.Module:
        """A network that shares what is in the memo of the copy."""
        given = checks.as_tensor(
            "coefficients", coefficients, f"({self.num_checkpoints},)", finite=True
        )
        if bool((given < 0).any()) or not bool(given.sum() > 0):
            raise ValueError(
                f"coefficients must be >= 0, one of them positive, got {given.tolist()!r:.80}"
            )
        fused = copy.deepcopy(self.module, memo)
        own = dict(fused.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, stacked in self.weights.items():
                own[name].copy_(torch.tensordot(_simplex(given).to(stacked), stacked, 1))
        return fused if self._batches is None else update_batch_norm(fused, self._batches)

    # The search ----------------------------------------------------------------------------------

    def run(
        self,
        num_iterations: int = 50,
        *,
        checkpoint: str | Path | None = None,
        progress: bool = True,
    ) -> Self:
        """Evaluate the single checkpoints, as many points of a Sobol sequence, then the search.

        The search uses all of these evaluations, unlike in [1], where the single checkpoints only
        set the scale.

        A failed evaluation, with an objective that is NaN or infinite, counts as the worst; a
        warning at the end says how many there were. Ctrl-C ends the search with a warning, and
        another call continues it.

        :param int num_iterations: total number of steps of the search, including those of earlier
            calls.
        :param checkpoint: a file that is written after each evaluation. If it exists, the search
            resumes from it. Loading it executes no code.
        :param bool progress: whether to show a progress bar.
        :returns: the object itself.
        :raises CheckpointError: if the file is damaged, belongs to another search, or is being
            written.
        """
        num_iterations = checks.integer("num_iterations", num_iterations, 0)
        checks.instance("progress", progress, bool, "True or False")
        if checkpoint is not None:
            checks.instance("checkpoint", checkpoint, (str, Path), "a path or None")
            checkpoint = Path(checkpoint)
        with locked(checkpoint):
            if checkpoint is not None and checkpoint.exists():
                self._read(checkpoint)
            number = self.num_checkpoints
            total = 2 * number + num_iterations
            singles = torch.eye(number, dtype=torch.float64)
            search: BayesianOptimizer | None = None
            bar = progress_bar(
                total=total,
                initial=len(self._x),
                desc="Model fusion",
                unit="network",
                disable=not progress,
            )
            with bar:
                try:
                    while len(self._x) < total:
                        if len(self._x) < number:
                            x = singles[len(self._x)]
                        else:
                            search = search or self._search()
                            x = search.ask()
                            # What is as small as can be is nothing, unless all is.
                            x = torch.where((x > _LEAST) | (x.max() <= _LEAST), x, 0.0)
                        values = torch.tensor(list(self.evaluate(x).values()), dtype=torch.float64)
                        self._x.append(x)
                        self._values.append(values)
                        if search is not None:
                            search.tell(x, self._normalized()[-1])
                        if checkpoint is not None:
                            self._write(checkpoint)
                        bar.set_postfix_str(self._postfix(), refresh=False)
                        bar.update()
                except KeyboardInterrupt:
                    warnings.warn(
                        f"stopped after {len(self._x)} of {total} evaluations, which are kept",
                        stacklevel=2,
                    )
        if num_failed := int((~self._is_good()).sum()):
            warnings.warn(
                f"{num_failed} of {len(self._x)} evaluations were not finite and count as the "
                "worst: see where history.values are NaN or infinite",
                stacklevel=2,
            )
        return self

    @property
    def history(self) -> FusionHistory:
        """All evaluations, in order."""
        self._check_run()
        normalized, is_efficient = self._normalized(), self._is_good()
        is_efficient[is_efficient.clone()] = pareto_mask(normalized[is_efficient])
        return FusionHistory(
            torch.stack([_simplex(x) for x in self._x]),
            torch.stack(self._values),
            normalized,
            self._search().hypervolumes(),
            is_efficient,
        )

    @property
    def best_coefficients(self) -> Tensor:
        """Coefficients with the best first objective; ties are broken by the further objectives.

        **Shape:** ``(K,)``.
        """
        self._check_run()
        is_good = self._is_good()[:, None]
        scores = [tuple(row) for row in self._normalized().where(is_good, -torch.inf).tolist()]
        return _simplex(self._x[scores.index(max(scores))])

    def best(self) -> nn.Module:
        """The network with :attr:`best_coefficients`."""
        return self.fuse(self.best_coefficients)

    def _check_run(self) -> None:
        if len(self._x) < self.num_checkpoints:
            raise RuntimeError(
                f"the {self.num_checkpoints} single checkpoints must be evaluated before, "
                f"{len(self._x)} of them were: call run(...)"
            )

    def _is_good(self) -> Tensor:
        """Return a mask of the finite evaluations."""
        return torch.tensor([bool(one.isfinite().all()) for one in self._values], dtype=torch.bool)

    def _normalized(self) -> Tensor:
        """Values such that single checkpoints lie between 0 and 1, and larger is better."""
        values = self._signs * torch.stack(self._values)
        singles = values[: self.num_checkpoints][self._is_good()[: self.num_checkpoints]]
        if not len(singles):
            found = dict(zip(self.objectives, self._values[0].tolist(), strict=True))
            raise ValueError(
                "evaluate must return finite numbers for at least one checkpoint, got none, of the "
                f"first {found}"
            )
        low, high = singles.aminmax(dim=0)
        span = high - low
        return (values - low) / torch.where(span > 0, span, 1.0)

    def _search(self) -> BayesianOptimizer:
        """A search that knows of all evaluations."""
        number = self.num_checkpoints
        bounds = torch.stack([torch.full((number,), _LEAST), torch.ones(number)])
        reference = torch.zeros(len(self.objectives)) if len(self.objectives) > 1 else None
        search = self._optimizer(bounds, reference, num_initial=2 * number, seed=self.seed)
        if self._x:
            search.tell(torch.stack(self._x), self._normalized())
        return search

    def _postfix(self) -> str:
        scores = self._signs[0] * torch.stack(self._values)[self._is_good(), 0]
        if len(self._x) < self.num_checkpoints or not len(scores):
            return ""
        return f"best {next(iter(self.objectives))} {float(self._signs[0] * scores.max()):.4g}"

    # Checkpoints ---------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for name, stacked in sorted(self.weights.items()):
            digest.update(f"{name}{stacked.dtype}{tuple(stacked.shape)}".encode())
            raw = stacked.cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy().tobytes())
        kind = getattr(self._optimizer, "__qualname__", "")
        objectives = [list(pair) for pair in self.objectives.items()]
        return {"objectives": objectives, "optimizer": kind, "checkpoints": digest.hexdigest()}

    def _write(self, path: Path) -> None:
        tensors = {"x": torch.stack(self._x), "values": torch.stack(self._values)}
        content = {"format": _FORMAT, "seed": self.seed, "identity": self._identity()}
        write_tensors(path, tensors, content)

    def _read(self, path: Path) -> None:
        tensors, content, _ = read_tensors(path)
        if content.get("format") != _FORMAT:
            raise CheckpointError(f"{path} holds no model fusion")
        own = {**self._identity(), "seed": self.seed if self._is_seeded else content["seed"]}
        found = {**content["identity"], "seed": content["seed"]}
        if unlike := [f"{key} {found[key]!r:.80}" for key in own if found[key] != own[key]]:
            raise CheckpointError(f"{path} is of another search, with {'; '.join(unlike)}")
        if len(tensors["x"]) > len(self._x):
            self.seed = content["seed"]
            self._x, self._values = list(tensors["x"]), list(tensors["values"])


def _simplex(x: Tensor) -> Tensor:
    return x.double() / x.double().sum()


def _copy(parameter: Tensor) -> Tensor:
    """A copy in single precision, or in double precision if it is."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return parameter.detach().to(dtype, copy=True)


def _stacked(module: nn.Module, checkpoints: Any) -> dict[str, Tensor]:
    """Weights of checkpoints by name, checked against each other and against the module."""
    own = dict(module.named_parameters(remove_duplicate=False))
    if isinstance(checkpoints, Mapping):
        stacked = {
            name: checks.as_tensor(f"checkpoints[{name!r}]", value, "(K, ...)")
            for name, value in checkpoints.items()
        }
    else:
        wanted = "weights by name, or a list of modules or state dicts"
        kinds = (nn.Module, Mapping)
        states = [
            dict(one.named_parameters()) if isinstance(one, nn.Module) else one
            for one in checks.sequence("checkpoints", checkpoints, wanted, 1, kinds)
        ]
        stacked = {}
        for name in states[0]:
            if name not in own and name in dict(module.named_buffers()):
                continue  # running statistics, which are taken anew
            forms = [
                checks.shown(one[name].detach()) if name in one else "nothing" for one in states
            ]
            if len(set(forms)) > 1:
                raise ValueError(f"checkpoints must have {name!r} alike, got {forms!r:.200}")
            stacked[name] = torch.stack([_copy(one[name]) for one in states])
    trained = {name for name, value in module.named_parameters() if value.requires_grad}
    if missing := sorted(trained - set(stacked)):
        raise ValueError(f"checkpoints must have the trained parameters, got none of {missing}")
    sizes = {len(value) for value in stacked.values()}
    if len(sizes) != 1 or min(sizes) < 2:
        raise ValueError(
            f"checkpoints must be two or more, as many for each parameter, got {sorted(sizes)}"
        )
    for name, value in stacked.items():
        if name not in own or value.shape[1:] != own[name].shape:
            raise ValueError(
                f"checkpoints must fit the module, got {name!r} of the shape "
                f"{tuple(value.shape[1:])} for "
                f"{checks.shown(own[name].detach()) if name in own else 'a module without it'}"
            )
        checks.all_finite(f"checkpoints[{name!r}]", value)
    # An average in half precision would be off by more than the checkpoints differ.
    return {
        name: value.detach().to(torch.promote_types(value.dtype, torch.float32))
        for name, value in stacked.items()
    }
