"""Kernels that move some sites of a model each, one after the other."""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import pyro.poutine as poutine
import torch
from pyro.infer import HMC
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_ext._checks import check_callable, check_sequence
from pyro_ext.inference._running.numbers import (
    State,
    adapts,
    has_known_state,
    read_state,
    write_state,
)
from pyro_ext.inference.conditional_updates import ConditionalUpdate, LogJoint, Model, Values
from pyro_ext.inference.partitions import ConjugateKernel
from pyro_ext.inference.vectorized import VectorizedKernel
from pyro_ext.posterior.identity import kernel_identity
from pyro_ext.potential import Potential, bijection
from pyro_ext.potential.runner import bounds_of

__all__ = ["Gibbs"]


def _copied(kernel: MCMCKernel) -> MCMCKernel:
    """A kernel of the same settings, models and modules, but with a state of its own."""
    if isinstance(kernel, VectorizedKernel):
        # A graph that is recorded at once would hold the values of the other sites as they are.
        return kernel.replace(backend="eager")
    shared = {id(value): value for value in vars(kernel).values() if callable(value)}
    return copy.deepcopy(kernel, shared)


def _identity_of(block: "Block") -> Any:
    """What a block is, for checkpoints: its type and settings, or the name of a function."""
    if isinstance(block, MCMCKernel):
        return kernel_identity(block)
    if isinstance(block, ConditionalUpdate):
        return {"type": type(block).__qualname__, **vars(block)}
    return getattr(block, "__qualname__", type(block).__qualname__)


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
    have a checkpoint, for which functions must depend on their arguments alone, and updates of
    one's own must say that they do, see :attr:`ConditionalUpdate.keeps_no_state`.

    :param blocks: kernels and names of sites, in the order in which they move.
    :param model: the model, by default that of the first kernel that has one.
    :raises ValueError: where a site is in two blocks, or there is no model; in ``setup`` where the
        blocks do not hold exactly the latent sites of the model.

    Example::

        >>> from pyro.infer import NUTS
        >>> from pyro_ext.inference import MCMC, EnumeratedSites
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
        self._parts: list[tuple[MCMCKernel | ConditionalUpdate, list[str]]] = []
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
        return {", ".join(sites): _identity_of(block) for block, sites in self.blocks}

    @property
    def has_known_state(self) -> bool:
        """Whether a chain can be stopped between two steps and go on elsewhere."""
        return all(
            has_known_state(block)
            for block, _ in self.blocks
            if isinstance(block, MCMCKernel | ConditionalUpdate)
        )

    @property
    def adapts(self) -> bool:
        """Whether a kernel of its blocks needs a warm-up."""
        return any(adapts(block) for block, _ in self.blocks)

    def read_state(self) -> State:
        """State of the kernels of all blocks, as tensors and plain values."""
        tensors: dict[str, Tensor] = {}
        content = []
        for number, (part, _) in enumerate(self._parts):
            own, plain = read_state(part)
            tensors |= {f"{number}.{name}": value for name, value in own.items()}
            content.append(plain)
        return tensors, {"blocks": content}

    def write_state(self, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        """Put back what :meth:`read_state` gave, after :meth:`setup`."""
        for number, ((part, _), plain) in enumerate(
            zip(self._parts, content["blocks"], strict=True)
        ):
            prefix = f"{number}."
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            write_state(part, own, plain)

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
        self._parts = []
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
        for kernel, _ in self._kernels():
            kernel.end_warmup()

    def cleanup(self) -> None:
        """Forget the chain."""
        for kernel, _ in self._kernels():
            kernel.cleanup()
        self._parts, self._runs = [], []
        self._initial, self._values, self._log_joint = None, {}, None

    def logging(self) -> "OrderedDict[str, str]":
        """Line of a progress bar, of all kernels."""
        line: OrderedDict[str, str] = OrderedDict()
        for kernel, sites in self._kernels():
            for name, value in (kernel.logging() or {}).items():
                line[f"{name} of {', '.join(sites)}" if name in line else name] = value
        return line

    def diagnostics(self) -> dict[str, Any]:
        """What the kernels report, by their types and sites, and draws after divergences of any."""
        found: dict[str, Any] = {
            f"{type(kernel).__name__} of {', '.join(sites)}": kernel.diagnostics() or {}
            for kernel, sites in self._kernels()
        }
        divergences = [each["divergences"] for each in found.values() if "divergences" in each]
        return found | ({"divergences": sorted(set().union(*divergences))} if divergences else {})

    def statistics(self) -> dict[str, float]:
        """Log joint density of the last step."""
        assert self._log_joint is not None
        return {"lp": self._log_joint(self._values)}

    # Blocks.

    def _kernels(self) -> Iterator[tuple[MCMCKernel, list[str]]]:
        """Kernels of the blocks, and their sites."""
        for part, sites in self._parts:
            if isinstance(part, MCMCKernel):
                yield part, sites

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
            self._parts.append((kernel, list(sites)))
            if isinstance(kernel, ConjugateKernel):
                return self._prepared_partition(kernel, sites, warmup_steps, args, kwargs)
            assert isinstance(kernel, HMC | VectorizedKernel)
            backend = getattr(block, "backend", "eager")
            self._set_up(kernel, sites, warmup_steps, args, kwargs, backend)
            if isinstance(kernel, HMC):
                return self._prepared_hmc(kernel, sites)
            return self._prepared_vectorized(kernel, sites)
        if isinstance(block, ConditionalUpdate):
            self._parts.append((block, list(sites)))
            return lambda: block.update(log_joint, self._values, sites)

        def drawn() -> Mapping[str, Tensor]:
            values = block(dict(self._values))
            if set(values) != set(sites):
                raise ValueError(
                    f"a function of the block of {list(sites)} returned {sorted(values)}"
                )
            return values

        return drawn

    def _set_up(
        self,
        kernel: HMC | VectorizedKernel,
        sites: Sequence[str],
        warmup_steps: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        backend: str,
    ) -> None:
        """Set a kernel up for the model in which all other sites have their present values."""
        whole = self.model

        def conditional(*args: Any, **kwargs: Any) -> Any:
            others = {name: v for name, v in self._values.items() if name not in sites}
            return poutine.condition(whole, data=others)(*args, **kwargs)

        kernel.model = conditional
        kernel.initial_params = self._unconstrained(sites)
        kernel.setup(warmup_steps, *args, **kwargs)
        if isinstance(kernel, VectorizedKernel):
            others = [name for name in self._values if name not in sites]
            kernel.bind(self._values, others, "eager" if backend == "eager" else "trace")

    def _unconstrained(self, sites: Sequence[str]) -> Values | None:
        """Present values of sites without their constraints, where they have a finite density."""
        assert self._log_joint is not None
        trace = self._log_joint.trace(self._values)
        if not math.isfinite(self._log_joint.log_density(trace)):
            return None
        nodes = {name: trace.nodes[name] for name in sites}
        return {k: bijection(node["fn"].support).inv(node["value"]) for k, node in nodes.items()}

    def _prepared_vectorized(
        self, kernel: VectorizedKernel, sites: Sequence[str]
    ) -> Callable[[], Mapping[str, Tensor]]:
        potential = kernel.potential
        assert isinstance(potential, Potential)

        def moved() -> Mapping[str, Tensor]:
            kernel.clear_cache()
            # The supports may depend on other sites: the maps are those of the present values.
            start = potential.unconstrain({name: self._values[name][None] for name in sites})
            params = kernel.sample({name: value[0] for name, value in start.items()})
            values = potential.constrain({name: value[None] for name, value in params.items()})
            return {name: values[name][0].detach() for name in sites}

        return moved

    def _prepared_hmc(
        self, kernel: HMC, sites: Sequence[str]
    ) -> Callable[[], Mapping[str, Tensor]]:
        transforms = kernel.transforms
        bounds = {name: found for name in sites if (found := self._bounds_of(name))}

        def moved() -> Mapping[str, Tensor]:
            for name, known in bounds.items():  # Pyro's HMC maps to the support that it first saw
                if not all(map(torch.equal, self._bounds_of(name), known)):
                    raise ValueError(
                        f"blocks have {type(kernel).__name__} for site {name!r}, whose support "
                        "depends on sites of other blocks: take a kernel of pyro_ext or RandomWalk"
                    )
            kernel.clear_cache()
            params = kernel.sample({name: transforms[name](self._values[name]) for name in sites})
            return {name: transforms[name].inv(params[name]).detach() for name in sites}

        return moved

    def _bounds_of(self, name: str) -> list[Tensor]:
        """Numbers that the support of a site has at the present values, none where it is fixed."""
        assert self._log_joint is not None
        return bounds_of(self._log_joint.trace(self._values).nodes[name]["fn"])

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
