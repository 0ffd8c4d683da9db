"""The forward divergence in the space of functions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_ext.inference.pseudocoresets.auto_pseudocoreset import AutoPseudocoreset
from pyro_ext.inference.pseudocoresets.divergences import ForwardKL
from pyro_ext.inference.pseudocoresets.function_space_surrogates import FunctionSpaceSurrogate
from pyro_ext.inference.pseudocoresets.posteriors import Coreset
from pyro_ext.inference.pseudocoresets.surrogates import (
    Comparison,
    GaussianSurrogate,
    Surrogate,
)

__all__ = ["FunctionSpaceKL"]


class FunctionSpaceKL(ForwardKL):
    r"""Divergence of the coreset's posterior from the data's, as laws of functions [1].

    It is :math:`KL(\nu_x \| \nu_u)`, where :math:`\nu` is the law that a posterior of the latent
    values gives to the function :math:`f` of the model, such as the logits of a network. The
    surrogate tells how the function and its laws are found. With several surrogates, as for several
    architectures, the loss is their sum: all of them share the pseudo rows of the guide. What the
    loss itself is says nothing; its gradient is an estimate of that of the divergence.

    :param surrogate: one :class:`~pyro_ext.inference.FunctionSpaceSurrogate` or a list of them;
        without one that of a :class:`~pyro_ext.inference.GaussianSurrogate`.
    :raises TypeError: for surrogates of another kind.
    :raises ValueError: for none of them.

    [1] B. Kim, H. Lee, J. Lee (2023), Function space Bayesian pseudocoreset for Bayesian neural
    networks.

    Example::

        >>> from pyro_ext.inference import AutoPseudocoreset, ExpertBuffer, TrajectorySnapshots
        >>> from pyro_ext.nn import MLP, BayesianModule
        >>> network = BayesianModule(MLP(2, [8], 3), 0.5)
        >>> def model(x, y):
        ...     logits = pyro.deterministic("logits", network(x), event_dim=1)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Categorical(logits=logits), obs=y)
        >>> x, y = torch.randn(99, 2), torch.arange(99) % 3
        >>> buffer = ExpertBuffer.collect(
        ...     model, x, y, num_experts=2, num_epochs=6, seed=0, progress=False)
        >>> guide = AutoPseudocoreset(model, x, y, size=3, seed=0)
        >>> surrogate = FunctionSpaceSurrogate(
        ...     TrajectorySnapshots(buffer), function="logits",
        ...     likelihood=lambda logits: dist.Categorical(logits=logits))
        >>> len(guide.fit(FunctionSpaceKL(surrogate), 2, seed=0, progress=False).losses)
        2
    """

    def __init__(
        self,
        surrogate: FunctionSpaceSurrogate | Sequence[FunctionSpaceSurrogate] | None = None,
    ) -> None:
        if surrogate is None:
            surrogate = FunctionSpaceSurrogate(GaussianSurrogate())
        terms = [surrogate] if isinstance(surrogate, FunctionSpaceSurrogate) else surrogate
        if not isinstance(terms, Sequence) or not all(
            isinstance(term, FunctionSpaceSurrogate) for term in terms
        ):
            raise TypeError(
                "surrogate must be a FunctionSpaceSurrogate or a list of them, got "
                f"{surrogate!r:.80}"
            )
        if not terms:
            raise ValueError("surrogate must hold at least one FunctionSpaceSurrogate, got none")
        super().__init__(terms[0] if len(terms) == 1 else _Sum(terms))


class _Sum(Surrogate):
    """The sum of the losses of several surrogates."""

    def __init__(self, terms: Sequence[Surrogate]) -> None:
        self.terms = list(terms)

    def __repr__(self) -> str:
        return repr(self.terms)

    def check(self, divergence: object) -> None:
        """See ``Surrogate.check``."""
        for term in self.terms:
            term.check(divergence)

    def compare(self, divergence: Comparison, guide: AutoPseudocoreset, coreset: Coreset) -> Tensor:
        """Sum of the losses; see ``Surrogate.compare``."""
        losses = [term.compare(divergence, guide, coreset) for term in self.terms]
        return torch.stack(losses).sum()
