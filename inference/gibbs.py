"""Kernels that move some sites of a model each, one after the other."""

import copy
import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeAlias

import pyro
import pyro.poutine as poutine
import torch
from pyro.infer import HMC
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_ext._checks import check_callable, check_mapping, check_number, check_sequence
from pyro_ext.inference._running.numbers import State, has_known_state, read_state, write_state
from pyro_ext.inference.partitions import ConjugateKernel
from pyro_ext.inference.vectorized import VectorizedKernel
from pyro_ext.posterior.identity import kernel_identity
from pyro_ext.potential.evaluation import bijection, may_validate

__all__ = [
    "ConditionalUpdate",
    "EnumeratedSites",
    "Gibbs",
    "LogJoint",
    "PriorProposals",
    "RandomWalk",
]

Values: TypeAlias = dict[str, Tensor]
Model: TypeAlias = Callable[..., Any]


class ConditionalUpdate(ABC):
    """Moves some sites of a model given all others; for :class:`Gibbs`."""

    keeps_no_state: bool = True
    """Whether an update depends on its arguments alone; otherwise no checkpoint can be made."""

    @abstractmethod
    def update(self, log_joint: "LogJoint", values: Values, sites: Sequence[str]) -> Values:
        """Move sites so that their distribution given the others is left invariant.

        :param LogJoint log_joint: the model at its data.
        :param dict values: of all sites, constrained.
        :param sites: names of those to move.
        :returns: the new values of these.
        """


class LogJoint:
    """A model at its data, as a function of the values of its latent sites.

    :param model: a Pyro model.
    :param tuple args: its arguments.
    :param dict kwargs: its keyword arguments.
    """

    def __init__(self, model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        check_callable("model", model, "a Pyro model")
        check_mapping("kwargs", kwargs, "a dict of arguments of the model")
        args = tuple(check_sequence("args", args, "the arguments of the model", 0))
        self._model, self._args, self._kwargs = model, args, kwargs
        self._unchecked: set[str] = set()

    def trace(self, values: Mapping[str, Tensor], *, validate: bool = False) -> Any:
        """Trace of the model where sites have given values.

        :param Mapping values: values by site.
        :param bool validate: whether values outside of a support raise, as Pyro is set; without it
            they have no density, so that they can be proposed and lost.
        """
        model = poutine.condition(self._model, data=dict(values))
        with torch.no_grad(), nullcontext() if validate else pyro.validation_enabled(False):
            trace = poutine.trace(model).get_trace(*self._args, **self._kwargs)
        if validate and pyro.distributions.is_validation_enabled():
            self._unchecked = {
                name
                for name in trace.observation_nodes
                if name not in values and not may_validate(trace.nodes[name]["fn"])
            }
        return trace

    def log_density(self, trace: Any) -> float:
        """Log density of a trace: minus infinity outside of a support, and where it is NaN."""
        with torch.no_grad(), pyro.validation_enabled(False):
            nodes = [node for name, node in trace.nodes.items() if name not in self._unchecked]
            if not all(map(_is_inside, nodes)):
                return -math.inf
            total = float(trace.log_prob_sum())
        return -math.inf if math.isnan(total) else total

    def __call__(self, values: Mapping[str, Tensor]) -> float:
        """Log density of the values and the data."""
        return self.log_density(self.trace(values))


def _is_inside(node: Any) -> bool:
    """Whether the value of a site is in its support; many densities are finite elsewhere too."""
    if node["type"] != "sample" or site_is_subsample(node):
        return True
    distribution, value = node["fn"], torch.as_tensor(node["value"])
    try:
        support = distribution.support
    except NotImplementedError:
        return True
    if constraints.is_dependent(support):
        return True
    inside: Tensor = support.check(value)
    if inside.dim() > len(distribution.batch_shape):
        inside = inside.flatten(len(distribution.batch_shape)).all(-1)
    for mask in (node["mask"], getattr(distribution, "_mask", None)):
        if mask is not None:
            inside = inside | ~torch.as_tensor(mask, device=inside.device)
    return bool(inside.all())


class EnumeratedSites(ConditionalUpdate):
    """Draws each element of discrete sites given all else, by enumeration of its values.

    Elements come one after the other in a random order, and each takes as many runs of the model as
    it has values, so that it is for sites of few elements.
    """

    def update(self, log_joint: LogJoint, values: Values, sites: Sequence[str]) -> Values:
        """Draw the elements of discrete sites.

        :param LogJoint log_joint: the model at its data.
        :param dict values: of all sites.
        :param sites: names of those to move.
        :returns: the new values of these.
        :raises ValueError: for a site whose values cannot be enumerated.
        """
        moved = dict(values)
        for name in sites:
            distribution = log_joint.trace(moved).nodes[name]["fn"]
            if not distribution.has_enumerate_support or distribution.event_dim:
                raise ValueError(
                    f"site {name!r} cannot be enumerated element by element: it is distributed as "
                    f"{type(distribution).__name__}"
                )
            support = distribution.enumerate_support(expand=False).flatten()
            site = moved[name].clone()
            for index in torch.randperm(site.numel()).tolist():
                logs = []
                for value in support:
                    site.view(-1)[index] = value
                    logs.append(log_joint({**moved, name: site}))
                chosen = torch.tensor(logs, dtype=torch.float64).softmax(0).multinomial(1)
                site.view(-1)[index] = support[chosen]
            moved[name] = site
        return {name: moved[name] for name in sites}


class PriorProposals(ConditionalUpdate):
    """Proposes sites given what they depend on in the model, with Metropolis-Hastings.

    Each site is proposed as a whole, so that it is for sites about which the data say little.
    """

    def update(self, log_joint: LogJoint, values: Values, sites: Sequence[str]) -> Values:
        """Propose sites and accept or not.

        :param LogJoint log_joint: the model at its data.
        :param dict values: of all sites.
        :param sites: names of those to move.
        :returns: the new values of these.
        """
        moved = dict(values)
        for name in sites:
            before = log_joint.trace(moved)
            distribution = before.nodes[name]["fn"]
            proposal = distribution.sample().to(moved[name])
            after = log_joint({**moved, name: proposal}) - float(
                distribution.log_prob(proposal).sum()
            )
            now = log_joint.log_density(before) - float(distribution.log_prob(moved[name]).sum())
            if torch.rand((), dtype=torch.float64).log() < after - now:
                moved[name] = proposal
        return {name: moved[name] for name in sites}


def _copied(kernel: MCMCKernel) -> MCMCKernel:
    """A kernel of the same settings, models and modules, but with a state of its own."""
    if isinstance(kernel, VectorizedKernel):
        # A recorded graph would hold the values of the other sites as they are now.
        return kernel.replace(backend="eager")
    shared = {id(value): value for value in vars(kernel).values() if callable(value)}
    return copy.deepcopy(kernel, shared)


Block: TypeAlias = MCMCKernel | ConditionalUpdate | Callable[[Values], Mapping[str, Tensor]]


class Gibbs(MCMCKernel):
    """Moves the sites of a Pyro model in blocks, each by a kernel of its own.

    A block is a kernel and the names of the sites that it moves given all others:

    * ``NUTS(model)``, ``HMC(model)`` or a stochastic-gradient kernel, for continuous sites. The
      latter evaluates the model at each step, and its sites may not lie in a plate that subsamples.
    * :class:`EnumeratedSites` or :class:`PriorProposals`, for discrete ones, or another
      :class:`ConditionalUpdate`.
    * a kernel over partitions with conjugate clusters, for ``"assignment"`` and those sites of its
      prior and cluster that it is to move; others of these it holds. Its auxiliary variable is
      drawn anew each time.
    * a function of the values of all sites that returns a draw of its sites given the others.

    Kernels are copied: those of the caller stay as they are, and can be used elsewhere. A run can
    have a checkpoint, for which functions and updates of one's own must depend on their arguments
    alone.

    :param blocks: kernels and names of sites, in the order in which they move.
    :param model: the model, by default that of the first kernel that has one.
    :raises ValueError: where a site is in two blocks, or there is no model; in ``setup`` where the
        blocks do not hold exactly the latent sites of the model.

    Example::

        >>> from pyro.infer import NUTS
        >>> from pyro_ext.inference import MCMC
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        ...     with pyro.plate("data", len(x)):
        ...         kind = pyro.sample("kind", dist.Bernoulli(0.5))
        ...         pyro.sample("x", dist.Normal(loc[kind.long()], 1.0), obs=x)
        >>> kernel = Gibbs([(NUTS(model), ["loc"]), (EnumeratedSites(), ["kind"])])
        >>> mcmc = MCMC(kernel, num_samples=10, warmup_steps=5, progress=False)
        >>> mcmc.run(torch.tensor([-3.0, 3.2])).get_samples()["kind"].shape
        torch.Size([10, 2])
    """

    is_constrained = True  # its parameters are values of the sites themselves

    def __init__(
        self, blocks: Sequence[tuple[Block, Sequence[str]]], *, model: Model | None = None
    ) -> None:
        for entry in check_sequence("blocks", blocks, "a list of pairs of a kernel and its sites"):
            if not isinstance(entry, list | tuple) or len(entry) != 2:
                raise TypeError(
                    f"blocks must be pairs of a kernel and a list of its sites, got {entry!r:.80}"
                )
            check_sequence("blocks", entry[1], "pairs of a kernel and a list of its sites")
        self.blocks = [(block, list(sites)) for block, sites in blocks]
        names = [name for _, sites in self.blocks for name in sites]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"blocks have the sites {twice} twice")
        for block, _ in self.blocks:
            if isinstance(block, MCMCKernel) and not isinstance(
                block, HMC | VectorizedKernel | ConjugateKernel
            ):
                raise TypeError(
                    "a kernel of blocks must be HMC, NUTS, a vectorized kernel or one "
                    f"over partitions with conjugate clusters, got {type(block).__name__}"
                )
        if model is not None:
            check_callable("model", model, "a Pyro model")
        known = [model, *(getattr(block, "model", None) for block, _ in self.blocks)]
        self._model = next((entry for entry in known if entry is not None), None)
        if self._model is None:
            raise ValueError("model must be given where no kernel of the blocks has one, got None")
        self.transforms: dict[str, Any] = {}
        self._values: Values = {}
        self._initial: Values | None = None
        self._log_joint: LogJoint | None = None
        self._kernels: list[MCMCKernel] = []
        self._runs: list[Callable[[], Mapping[str, Tensor]]] = []
        super().__init__()

    @property
    def model(self) -> Model:
        """The model whose sites the blocks move."""
        assert self._model is not None
        return self._model

    @property
    def partitions(self) -> tuple[str, ...]:
        """Names of the sites that are label vectors of partitions."""
        return tuple(
            name
            for block, sites in self.blocks
            if isinstance(block, ConjugateKernel)
            for name in block.partitions
            if name in sites
        )

    def settings(self) -> dict[str, Any]:
        """The blocks by names of their sites, kernels with their settings, for checkpoints."""
        return {
            ", ".join(sites): kernel_identity(block)
            if isinstance(block, MCMCKernel)
            else getattr(block, "__qualname__", type(block).__qualname__)
            for block, sites in self.blocks
        }

    @property
    def has_known_state(self) -> bool:
        """Whether a chain can be stopped between two steps and go on elsewhere."""
        return all(
            has_known_state(block)
            for block, _ in self.blocks
            if isinstance(block, MCMCKernel | ConditionalUpdate)
        )

    def read_state(self) -> State:
        """State of the kernels of all blocks, as tensors and plain values."""
        tensors: dict[str, Tensor] = {}
        content = []
        for number, kernel in enumerate(self._kernels):
            own, plain = read_state(kernel)
            tensors |= {f"{number}.{name}": value for name, value in own.items()}
            content.append(plain)
        return tensors, {"blocks": content}

    def write_state(self, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        """Put back what :meth:`read_state` gave, after :meth:`setup`."""
        for number, (kernel, plain) in enumerate(
            zip(self._kernels, content["blocks"], strict=True)
        ):
            prefix = f"{number}."
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            write_state(kernel, own, plain)

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Prepare all blocks.

        :param int warmup_steps: steps in which kernels adapt.
        :param args: arguments of the model.
        :param kwargs: keyword arguments of the model.
        """
        assert self._model is not None
        self._log_joint = LogJoint(self._model, args, kwargs)
        start = self._log_joint.trace(self._initial or {}, validate=True)
        latent = {
            name: node["value"].detach()
            for name, node in start.nodes.items()
            if node["type"] == "sample"
            and not node["infer"].get("_deterministic")
            and (not node["is_observed"] or name in (self._initial or {}))
            and type(node["fn"]).__name__ != "_Subsample"
        }
        names = {name for _, sites in self.blocks for name in sites}
        if names != set(latent):
            raise ValueError(
                f"blocks have the sites {sorted(names)}, but the model has {sorted(latent)}"
            )
        self._values = latent
        self._initial = dict(latent)
        self._kernels = []
        self._runs = [
            self._prepared(block, sites, warmup_steps, args, kwargs) for block, sites in self.blocks
        ]

    @property
    def initial_params(self) -> Values:
        """Values of all sites where the chain starts, constrained."""
        if self._initial is None:
            raise RuntimeError("there are no initial parameters before setup")
        return self._initial

    @initial_params.setter
    def initial_params(self, params: Mapping[str, Tensor] | None) -> None:
        self._initial = None if params is None else dict(params)

    def sample(self, params: Values) -> Values:
        """Move all blocks once.

        :param dict params: values of all sites.
        :returns: the new values.
        """
        # Conditional models read the values that this dict has at the time.
        self._values.update(params)
        for run in self._runs:
            self._values.update(run())
        return dict(self._values)

    def end_warmup(self) -> None:
        """Tell the kernels of the blocks."""
        for kernel in self._kernels:
            kernel.end_warmup()

    def cleanup(self) -> None:
        """Forget the chain."""
        for kernel in self._kernels:
            kernel.cleanup()
        self._kernels, self._runs = [], []
        self._initial, self._values, self._log_joint = None, {}, None

    def logging(self) -> "OrderedDict[str, str]":
        """Line of a progress bar, of all kernels."""
        line: OrderedDict[str, str] = OrderedDict()
        for kernel in self._kernels:
            line.update(kernel.logging() or {})
        return line

    def diagnostics(self) -> dict[str, Any]:
        """What the kernels of the blocks report, by the names of their types."""
        return {type(kernel).__name__: kernel.diagnostics() for kernel in self._kernels}

    def statistics(self) -> dict[str, float]:
        """Log joint density of the last step."""
        assert self._log_joint is not None
        return {"lp": self._log_joint(self._values)}

    # Blocks.

    def _prepared(
        self,
        block: Block,
        sites: Sequence[str],
        warmup_steps: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Callable[[], Mapping[str, Tensor]]:
        """A function that moves a block given the present values."""
        log_joint = self._log_joint
        assert log_joint is not None
        if isinstance(block, MCMCKernel):
            kernel = _copied(block)
            self._kernels.append(kernel)
            if isinstance(kernel, ConjugateKernel):
                return self._prepared_partition(kernel, sites, warmup_steps, args, kwargs)
            assert isinstance(kernel, HMC | VectorizedKernel)
            return self._prepared_kernel(kernel, sites, warmup_steps, args, kwargs)
        if isinstance(block, ConditionalUpdate):
            return lambda: block.update(log_joint, self._values, sites)

        def drawn() -> Mapping[str, Tensor]:
            values = block(dict(self._values))
            if set(values) != set(sites):
                raise ValueError(
                    f"a function of the block of {list(sites)} returned {sorted(values)}"
                )
            return values

        return drawn

    def _prepared_kernel(
        self,
        kernel: HMC | VectorizedKernel,
        sites: Sequence[str],
        warmup_steps: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Callable[[], Mapping[str, Tensor]]:
        whole = self._model
        assert whole is not None

        def conditional(*args: Any, **kwargs: Any) -> Any:
            others = {name: v for name, v in self._values.items() if name not in sites}
            return poutine.condition(whole, data=others)(*args, **kwargs)

        kernel.model = conditional
        kernel.initial_params = None
        kernel.setup(warmup_steps, *args, **kwargs)
        transforms = kernel.transforms

        def moved() -> Mapping[str, Tensor]:
            if isinstance(kernel, HMC):
                kernel.clear_cache()
            params = kernel.sample({name: transforms[name](self._values[name]) for name in sites})
            return {name: transforms[name].inv(params[name]).detach() for name in sites}

        return moved

    def _prepared_partition(
        self,
        kernel: ConjugateKernel,
        sites: Sequence[str],
        warmup_steps: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Callable[[], Mapping[str, Tensor]]:
        kernel.initial_params = {k: v for k, v in self._values.items()}
        kernel.setup(warmup_steps, *args, **kwargs)
        kernel.held = frozenset(kernel.initial_params) - set(sites)

        def moved() -> Mapping[str, Tensor]:
            params = kernel.sample(dict(self._values))
            return {name: params[name] for name in sites}

        return moved


class RandomWalk(ConditionalUpdate):
    """Moves sites one after the other by random walks in unconstrained space, with Metropolis.

    The density of a proposal in unconstrained space has the Jacobian of its transform.

    :param float scale: standard deviation of a step.
    :raises ValueError: where it is not positive.

    Example::

        >>> from pyro_ext.inference import MCMC, Gibbs
        >>> def model():
        ...     pyro.sample("rate", dist.Gamma(2.0, 1.0))
        >>> kernel = Gibbs([(RandomWalk(1.0), ["rate"])], model=model)
        >>> mcmc = MCMC(kernel, num_samples=20, progress=False).run()
        >>> bool((mcmc.get_samples()["rate"] > 0).all())
        True
    """

    def __init__(self, scale: float) -> None:
        self.scale = check_number("scale", scale, above=0)

    def update(self, log_joint: LogJoint, values: Values, sites: Sequence[str]) -> Values:
        """Propose each site and accept or not.

        :param LogJoint log_joint: the model at its data.
        :param dict values: of all sites.
        :param sites: names of those to move.
        :returns: the new values of these.
        :raises ValueError: for a site with a discrete support.
        """
        moved = dict(values)
        trace = log_joint.trace(moved)
        now = log_joint.log_density(trace)
        for name in sites:
            # The support may depend on sites that have moved: this trace is at their new values.
            transform = _transform(name, trace.nodes[name]["fn"].support)
            point = transform.inv(moved[name])
            proposal = point + self.scale * torch.randn_like(point)
            value = transform(proposal)
            after_trace = log_joint.trace({**moved, name: value})
            after = log_joint.log_density(after_trace)
            growth = transform.log_abs_det_jacobian(proposal, value)
            shrinkage = transform.log_abs_det_jacobian(point, moved[name])
            log_ratio = after - now + float(growth.sum() - shrinkage.sum())
            if torch.rand((), dtype=torch.float64).log() < log_ratio:
                moved[name], trace, now = value, after_trace, after
        return {name: moved[name] for name in sites}


def _transform(name: str, support: Constraint) -> Any:
    """Bijection from unconstrained space to the support of a site."""
    if not support.is_discrete:
        try:
            return bijection(support)
        except NotImplementedError:
            pass
    raise ValueError(
        f"site {name!r} cannot be moved by a random walk: there is no map from unconstrained space "
        f"to its support {support}. Move it by EnumeratedSites or PriorProposals"
    )
