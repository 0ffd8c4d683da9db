"""Posteriors as distributions of a function, and the forward divergence between them."""

from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any, Literal, NamedTuple, NoReturn, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.pseudocoresets.auto_pseudocoreset import AutoPseudocoreset
from pyro_ext.inference.pseudocoresets.coreset_rows import row_arguments
from pyro_ext.inference.pseudocoresets.divergences import ForwardKL
from pyro_ext.inference.pseudocoresets.gaussians import Gaussian
from pyro_ext.inference.pseudocoresets.model_functions import (
    Function,
    Likelihood,
    ModelFunction,
    SnapshotMean,
    diagonal_marginal,
    full_marginal,
    linearized_marginal,
)
from pyro_ext.inference.pseudocoresets.posteriors import Coreset, Posteriors, posteriors_of
from pyro_ext.inference.pseudocoresets.surrogates import (
    GaussianSurrogate,
    MCMCSurrogate,
    Surrogate,
)
from pyro_ext.inference.pseudocoresets.trajectories import TrajectorySnapshots
from pyro_ext.potential import Potential
from pyro_ext.potential.rows import WeightedModel, plate_of

FunctionCovariance = Literal["diagonal", "full", "jacobian"]
ParameterDistribution = Tensor | Gaussian


class ParameterDistributions(NamedTuple):
    """Distributions of the latent values under two posteriors, in unconstrained space.

    :param data: distribution under the posterior of the data: a Gaussian, or snapshots. **Shape:**
        ``(num_snapshots, size)``.
    :param coreset: distribution under the posterior of the coreset.
    """

    data: ParameterDistribution
    coreset: ParameterDistribution


class FunctionMarginals(NamedTuple):
    """Gaussian distributions of the values of a function at the pseudo rows.

    :param data: under the posterior of the data.
    :param coreset: under the posterior of the coreset.
    """

    data: Any
    coreset: Any


@singledispatch
def parameter_distributions(
    posteriors: object, guide: Posteriors, coreset: Coreset
) -> ParameterDistributions:
    """Return the distributions of the latent values under the posteriors.

    It supports :class:`~pyro_ext.inference.GaussianSurrogate`,
    :class:`~pyro_ext.inference.MCMCSurrogate` and
    :class:`~pyro_ext.inference.TrajectorySnapshots`; add others with
    ``parameter_distributions.register``.

    :param posteriors: the source of the distributions.
    :param AutoPseudocoreset guide: has the model and the data.
    :param Coreset coreset: pseudo rows and weights. No gradient flows through the result.
    :raises TypeError: for an unknown kind of posteriors.
    """
    raise _unknown(posteriors)


@parameter_distributions.register
def _(posteriors: GaussianSurrogate, guide: Posteriors, coreset: Coreset) -> ParameterDistributions:
    with torch.no_grad():
        own = Gaussian(*posteriors.coreset_gaussian(guide, coreset))
    return ParameterDistributions(Gaussian(*posteriors.data_gaussian(guide)), own)


@parameter_distributions.register
def _(posteriors: MCMCSurrogate, guide: Posteriors, coreset: Coreset) -> ParameterDistributions:
    own = posteriors.coreset_draws(guide, coreset)
    return ParameterDistributions(posteriors.data_draws(guide), own)


@parameter_distributions.register
def _(
    posteriors: TrajectorySnapshots, guide: Posteriors, coreset: Coreset
) -> ParameterDistributions:
    return ParameterDistributions(*posteriors.draw(guide, coreset))


class _OtherModel:
    """Another model over the data and the pseudo rows of a guide."""

    def __init__(
        self,
        guide: AutoPseudocoreset,
        model: Callable[..., Any],
        example: Coreset,
    ) -> None:
        whole = Potential(model, *guide.args, **guide.kwargs)
        plate = plate_of(whole.structure, guide.plate.name)
        arguments = row_arguments(model, guide.args, guide.kwargs, plate.size)
        weighted = WeightedModel(model, arguments, plate.name)
        self.posterior, self.data = posteriors_of(whole, plate, weighted, example, "trace")


class FunctionSpaceSurrogate(Surrogate):
    r"""Gaussian distributions of a model's function at the pseudo rows, under both posteriors [1].

    Only the values :math:`f(u)` at the pseudo rows matter to the likelihood of a coreset. This
    makes it possible to compare posteriors at different modes of the weights that represent the
    same function, and to learn coresets with several models at once. Let the values have the
    distribution :math:`N(m_x, \Psi_x)` under the posterior of the data and :math:`N(m_u, \Psi_u)`
    under that of the coreset. With the weighted log likelihood
    :math:`F_u(f) = \sum_j w_j \log p(y_j | f_j)`,

    .. math:: \nabla_u KL(\nu_x \| \nu_u) \approx
              - E_\epsilon \nabla_u F_u(m_x + \Psi_x^{1/2} \epsilon)
              + E_\epsilon \nabla_u F_u(m_u + \Psi_u^{1/2} \epsilon) ,

    where the gradient flows through means and covariances, as functions of the pseudo rows, but not
    through latent values. It is the gradient of a forward divergence; other divergences are not
    available. With trajectories, the log likelihoods are means over weights, not sums: one learning
    rate fits coresets of all sizes, as with a :class:`~pyro_ext.inference.TrajectorySurrogate`.

    :param posteriors: the source of the latent values:
        :class:`~pyro_ext.inference.TrajectorySnapshots`; a
        :class:`~pyro_ext.inference.GaussianSurrogate`, whose Gaussians are pushed through the
        linearized function, which is exact for a linear one; or an
        :class:`~pyro_ext.inference.MCMCSurrogate`, whose draws serve as snapshots.
    :param model: a model with the same arguments and plate, for example of another architecture; by
        default the guide's model.
    :param str function: the function, as the name of a ``pyro.deterministic`` site. By default it
        is the unconstrained parameter of the observed site: logits, a location, or the logarithm of
        a rate. The distribution of the site keeps its other parameters.
    :param likelihood: with ``function``, maps its values to a distribution of the observed site,
        such as ``lambda f: dist.Categorical(logits=f)``. **Shape:**
        ``(num_particles, num_rows, *outputs)`` to the batch shape
        ``(num_particles, num_rows, ...)``.
    :param str covariance: ``"diagonal"`` for the variance of each value over snapshots; ``"full"``
        for the covariances of the outputs at each row; or ``"jacobian"`` for those of the function
        linearized in the latent values, which count as independent if there are snapshots. By
        default ``"jacobian"`` for Gaussians, which support no other, and ``"diagonal"`` for
        snapshots.
    :param str mean: ``"last"`` for the value at the last snapshot, or ``"average"`` for the average
        over snapshots. By default ``"average"`` for draws, none of which is the best, and
        ``"last"`` otherwise.
    :param int num_particles: number of draws of values from each distribution.
    :raises TypeError: if ``posteriors`` or ``model`` has another type.
    :raises ValueError: for an unknown covariance or mean, or one that the posteriors do not
        support.

    [1] B. Kim, H. Lee, J. Lee (2023), Function space Bayesian pseudocoreset for Bayesian neural
    networks.

    Example::

        >>> from pyro_ext.inference import AutoPseudocoreset
        >>> def model(x, y):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
        >>> x = torch.linspace(-2.0, 2.0, 50)
        >>> guide = AutoPseudocoreset(model, x, x, size=5, seed=0)
        >>> surrogate = FunctionSpaceSurrogate(GaussianSurrogate())
        >>> surrogate.marginals(guide, guide.coreset()).data.event_shape
        torch.Size([5])
    """

    def __init__(
        self,
        posteriors: GaussianSurrogate | MCMCSurrogate | TrajectorySnapshots,
        *,
        model: Callable[..., Any] | None = None,
        function: str | None = None,
        likelihood: Likelihood | None = None,
        covariance: FunctionCovariance | None = None,
        mean: SnapshotMean | None = None,
        num_particles: int = 10,
    ) -> None:
        checks.optional(checks.instance, "function", function, str, "the name of a site")
        if parameter_distributions.dispatch(type(posteriors)) is parameter_distributions.dispatch(
            object
        ):
            raise _unknown(posteriors)
        checks.optional(checks.function, "model", model, "a Pyro model")
        wanted = "a function of values that returns a distribution"
        checks.optional(checks.function, "likelihood", likelihood, wanted)
        is_gaussian = isinstance(posteriors, GaussianSurrogate)
        are_draws = isinstance(posteriors, MCMCSurrogate)
        known = ("jacobian",) if is_gaussian else get_args(FunctionCovariance)
        means = ("average",) if are_draws else get_args(SnapshotMean)
        owner = type(posteriors).__name__
        checks.optional(checks.choice, f"covariance of a {owner}", covariance, known)
        checks.optional(checks.choice, f"mean of a {owner}", mean, means)
        self.posteriors, self.model = posteriors, model
        self.function, self.likelihood = function, likelihood
        self.covariance = covariance or ("jacobian" if is_gaussian else "diagonal")
        self.mean: SnapshotMean = mean or ("average" if are_draws else "last")
        self.num_particles = checks.integer("num_particles", num_particles, 1)
        self._known: WeakKeyDictionary[
            AutoPseudocoreset, tuple[_OtherModel | None, ModelFunction]
        ] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return (
            f"FunctionSpaceSurrogate({self.posteriors!r}, covariance={self.covariance!r}, "
            f"mean={self.mean!r})"
        )

    def check(self, divergence: object) -> None:
        """Raise for a divergence other than a forward one.

        :param divergence: the divergence.
        """
        if not isinstance(divergence, ForwardKL):
            raise ValueError(
                "surrogate must be one of latent values, such as a GaussianSurrogate, for "
                f"{type(divergence).__name__}: in function space, only the forward divergence "
                "is available"
            )

    def marginals(self, guide: AutoPseudocoreset, coreset: Coreset) -> FunctionMarginals:
        """Distributions of the function at the rows of a coreset, differentiable in the rows.

        :param AutoPseudocoreset guide: has the model and the data.
        :param Coreset coreset: pseudo rows and weights.
        """
        owner, function = self._parts(guide)
        both = parameter_distributions(self.posteriors, owner, coreset)
        return FunctionMarginals(*(self._marginal(function.at(coreset), one) for one in both))

    def compare(self, divergence: Any, guide: Any, coreset: Coreset) -> Tensor:
        """Compute the loss from draws of values; see ``Surrogate.compare``."""
        _, function = self._parts(guide)
        marginals = self.marginals(guide, coreset)
        are_trajectories = isinstance(self.posteriors, TrajectorySnapshots)
        total = coreset.weights.sum() if are_trajectories else 1.0

        def log_likelihood(marginal: Any) -> Tensor:
            return function.log_likelihood(marginal.rsample((self.num_particles,)), coreset) / total

        loss: Tensor = divergence.of_draws(
            lambda: log_likelihood(marginals.data),
            lambda: log_likelihood(marginals.coreset),
            _no_data,
        )
        return loss

    def _parts(self, guide: AutoPseudocoreset) -> tuple[Posteriors, ModelFunction]:
        """The posteriors of the model over the rows of a guide, and the function of the model."""
        if guide not in self._known:
            example = guide.coreset().detached()
            other = None
            if self.model is not None and self.model != guide.model:
                other = _OtherModel(guide, self.model, example)
            posterior = (other or guide).posterior
            function = ModelFunction(posterior, example, self.function, self.likelihood)
            self._known[guide] = other, function
        other, function = self._known[guide]
        return other or guide, function

    def _marginal(self, function: Function, distribution: ParameterDistribution) -> Any:
        """Distribution of the values of a function."""
        if isinstance(distribution, Gaussian):
            return linearized_marginal(function, distribution.mean, distribution.covariance)
        if self.covariance == "jacobian":
            center = distribution[-1] if self.mean == "last" else distribution.mean(0)
            return linearized_marginal(function, center, distribution.var(0, correction=0))
        marginal = diagonal_marginal if self.covariance == "diagonal" else full_marginal
        return marginal(function, distribution, self.mean)


def _unknown(posteriors: object) -> TypeError:
    return TypeError(
        "posteriors must be a GaussianSurrogate, an MCMCSurrogate or TrajectorySnapshots, got "
        f"{posteriors!r:.80}"
    )


def _no_data() -> NoReturn:
    raise NotImplementedError("the likelihood of the data is no function of values at pseudo rows")


class FunctionSpaceKL(ForwardKL):
    r"""Divergence of the coreset's posterior from the data's, as distributions of functions [1].

    This is :math:`KL(\nu_x \| \nu_u)`, where :math:`\nu` is the distribution of the function
    :math:`f` of the model, such as the logits of a network, under a posterior of the latent values.
    The surrogate determines the function and its distributions. With several surrogates, for
    example for several architectures, the loss is their sum: all of them see the pseudo rows of the
    guide. The value of the loss is meaningless; its gradient estimates that of the divergence.

    :param surrogate: a :class:`~pyro_ext.inference.FunctionSpaceSurrogate` or a list of them; by
        default that of a :class:`~pyro_ext.inference.GaussianSurrogate`.
    :raises TypeError: for surrogates of another kind.

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
        self, surrogate: FunctionSpaceSurrogate | Sequence[FunctionSpaceSurrogate] | None = None
    ) -> None:
        if surrogate is None:
            surrogate = FunctionSpaceSurrogate(GaussianSurrogate())
        given = [surrogate] if isinstance(surrogate, FunctionSpaceSurrogate) else surrogate
        wanted = "a FunctionSpaceSurrogate or a list of them"
        terms = checks.sequence("surrogate", given, wanted, kind=FunctionSpaceSurrogate)
        super().__init__(terms[0] if len(terms) == 1 else _Sum(terms))


class _Sum(Surrogate):
    """The sum of the losses of several surrogates."""

    def __init__(self, terms: list[Surrogate]) -> None:
        self.terms = terms

    def __repr__(self) -> str:
        return repr(self.terms)

    def check(self, divergence: object) -> None:
        """See ``Surrogate.check``."""
        for term in self.terms:
            term.check(divergence)

    def compare(self, divergence: Any, guide: Any, coreset: Coreset) -> Tensor:
        """Sum of the losses; see ``Surrogate.compare``."""
        losses = [term.compare(divergence, guide, coreset) for term in self.terms]
        return torch.stack(losses).sum()
