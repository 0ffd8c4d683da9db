"""A guide whose normal distribution is that of the weights along its training."""

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

    While it is trained, by :class:`~pyro.infer.SVI` or any
    :class:`~pyro_ext.inference.Trainer`, it is a point in unconstrained space, ``loc``, which goes
    to the mode; a constant learning rate and minibatches keep it moving around there. The first
    call after each step of the optimizer takes in where the point is. With gradients switched off,
    as in :class:`~pyro.infer.Predictive`, :func:`~pyro_ext.diagnostics.to_arviz` or
    ``SVI.evaluate_loss``, or after ``eval()``, it draws from
    :func:`~pyro_ext.inference.averaging.swag_distribution` of these points, in unconstrained space.
    Before there are two of them it stays a point, and warns.

    How wide the distribution is depends on the learning rate, on the noise of the minibatches, and
    on where counting starts: without minibatches the point comes to rest, and draws have no width
    at all; with the way to the mode among the points they have far too much. It is an approximation
    of the posterior where ``start``, ``scale`` and the rate are chosen for it: compare with
    :class:`~pyro_ext.inference.NUTS` where that can be run.

    :param model: a Pyro model with continuous latent sites.
    :param int max_rank: number of latest points in the low-rank part.
    :param int start: steps before the first point that counts. Take as many as it needs to settle:
        0 takes in the way there.
    :param int every: steps from one point to the next.
    :param float scale: :math:`c`, by which the covariance is multiplied.
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
        """Sample the latent sites: at the point in training, otherwise from the distribution.

        :param args: arguments of the model.
        :param kwargs: the same by keyword.
        :returns: values by site.
        :raises ValueError: where training has gone to what is not finite.
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
        """The distribution of the flat unconstrained values, or the point where it is one."""
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
