"""A guide whose normal distribution comes from the trajectory of its own training."""

import warnings
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoContinuous, init_to_median
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext.inference.averaging.weight_averages import SWAGState, swag_distribution


class AutoSWAG(AutoContinuous):
    r"""A normal guide, of low rank plus diagonal, around the average of a trajectory [1].

    During training, by :class:`~pyro.infer.SVI` or any :class:`~pyro_ext.inference.Trainer`, the
    guide is a point in unconstrained space, ``loc``. It moves to the mode, and a constant learning
    rate and minibatches keep it moving around there. The first call after each optimizer step
    records the point. When gradients are off, as in :class:`~pyro.infer.Predictive`,
    :func:`~pyro_ext.diagnostics.to_arviz` or ``SVI.evaluate_loss``, or after ``eval()``, the guide
    draws from the :func:`~pyro_ext.inference.averaging.swag_distribution` of these points, in
    unconstrained space. Until it has two of them, it remains a point, and warns.

    The width of the distribution depends on the learning rate, the noise of the minibatches, and
    the start of recording. Without minibatches the point comes to rest, and draws have no width at
    all; if the way to the mode is recorded, they are far too wide. It approximates the posterior
    only if ``start``, ``scale`` and the learning rate are chosen for that: compare with
    :class:`~pyro_ext.inference.NUTS` if you can run it.

    :param model: a Pyro model with continuous latent sites.
    :param int max_rank: number of latest points in the low-rank part.
    :param int start: number of steps before the first recorded point. Choose it so that the point
        has settled; 0 records the way to the mode.
    :param int every: number of steps between recorded points.
    :param float scale: :math:`c`, which multiplies the covariance.
    :param init_loc_fn: where training starts, one of :mod:`pyro.infer.autoguide.initialization`.
    :raises ValueError: for numbers out of range.

    [1] W. J. Maddox, T. Garipov, P. Izmailov, D. Vetrov, A. G. Wilson (2019),
    A simple baseline for Bayesian uncertainty in deep learning.

    Example::

        >>> from pyro.infer import SVI, Predictive, Trace_ELBO
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x), subsample_size=5, subsample=None) as rows:
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x[rows])
        >>> x, guide = 3.0 + torch.randn(50), AutoSWAG(model, start=100)
        >>> svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.01}), Trace_ELBO())
        >>> losses = [svi.step(x) for _ in range(300)]
        >>> draws = Predictive(model, guide=guide, num_samples=100)(x)["loc"]
        >>> guide.num_collected, abs(float(draws.mean() - x.mean())) < 0.5
        (200, True)
    """

    num_steps: Tensor
    swag_num_collected: Tensor
    swag_mean: Tensor
    swag_squares: Tensor
    swag_latest: Tensor

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        max_rank: int = 20,
        start: int = 0,
        every: int = 1,
        scale: float = 1.0,
        init_loc_fn: Callable[..., Any] = init_to_median,
    ) -> None:
        checks.function("model", model, "a Pyro model")
        checks.function("init_loc_fn", init_loc_fn)
        super().__init__(model, init_loc_fn)  # type: ignore[no-untyped-call]
        self.max_rank = checks.integer("max_rank", max_rank, 2)
        self.start = checks.integer("start", start, 0)
        self.every = checks.integer("every", every, 1)
        self.scale = checks.number("scale", scale, above=0)
        self._seen: tuple[int, int] | None = None

    @property
    def num_collected(self) -> int:
        """Number of points collected so far."""
        return 0 if self.prototype_trace is None else int(self.swag_num_collected)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Sample the latent sites: at the point during training, otherwise from the distribution.

        :param args: arguments of the model.
        :param kwargs: keyword arguments of the model.
        :returns: values by site.
        :raises ValueError: if training has led to values that are not finite.
        """
        is_set_up = self.prototype_trace is not None
        if not is_set_up:
            self._setup_prototype(*args, **kwargs)
        # Several particles see one point: only a step of the optimizer changes its version.
        here = (id(self.loc), self.loc._version)
        if self._is_trained() and here != self._seen:
            self._seen = here
            after = int(self.num_steps) - self.start
            if after >= 0 and after % self.every == 0:
                checks.all_finite("loc", self.loc.detach())
                self._moments().update_(self.loc.detach())
            self.num_steps += 1
        elif is_set_up and not self._is_trained() and self.num_collected < 2:
            warnings.warn(
                f"draws of AutoSWAG are a point, since {self.num_collected} points were collected "
                f"in {int(self.num_steps)} steps of training, with start={self.start}; a parameter "
                "store keeps the point alone, state_dict() keeps all",
                stacklevel=2,
            )
        return super().forward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """The distribution of the flat unconstrained values, or the point if there is none yet."""
        if self._is_trained() or int(self.swag_num_collected) < 2:
            return dist.Delta(self.loc).to_event(1)
        found = self._swag()
        return dist.LowRankMultivariateNormal(found.loc, found.cov_factor, found.cov_diag)

    # Helpers -------------------------------------------------------------------------------------

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.loc = nn.Parameter(self._init_loc())  # type: ignore[no-untyped-call]
        state = SWAGState.init(self.loc.detach(), self.max_rank)
        for name, tensor in state._asdict().items():
            self.register_buffer(f"swag_{name}", tensor)
        self.register_buffer("num_steps", torch.zeros_like(state.num_collected))

    def _is_trained(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def _moments(self) -> SWAGState:
        return SWAGState(
            self.swag_num_collected, self.swag_mean, self.swag_squares, self.swag_latest
        )

    def _swag(self) -> Any:
        state = self._moments()
        loc = state.mean.to(self.loc.dtype)
        return swag_distribution(loc, state.variance, state.deviations, self.scale)

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        found = self._swag()
        return found.loc, found.variance.sqrt()
