"""The handler that draws predictions of a model to those of a teacher."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.params.param_store import ParamStoreDict
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_ext._lib import checks


def consistency(
    teacher: Callable[..., Any],
    sites: Sequence[str],
    weight: float = 1.0,
    *,
    name: str = "consistency",
) -> "_Consistency":
    r"""Draw what a model predicts at some of its sites to what a teacher predicts there.

    It is a handler for use around a model: ``consistency(teacher, ["x"])(model)``. The teacher is
    run on the same arguments, with the latent values and subsamples of the model, so that a mask
    that the model samples is the teacher's mask, too. Then a factor is added,

    .. math:: -w \sum_{\text{sites}} KL(p_T(x \mid z) \,\|\, p_S(x \mid z)),

    with the scales and masks of the sites, once for each particle or element of a plate around the
    model. No gradient goes into the teacher. For normal sites of
    one variance :math:`\sigma^2` the divergence is :math:`\|\mu_S - \mu_T\|^2 / 2 \sigma^2`: a
    normal prior around the teacher's prediction, and :math:`w` the weight of the teacher's beside
    the data [1]. With ``weight=0`` the model is run as it is.

    The teacher's parameters are those of its own modules, as of a
    :class:`~pyro_ext.nn.MeanTeacher`, and none of the parameter store, which holds the student's
    under the same names. Handlers that change the inputs of a model belong around model and teacher
    both, inside of this one.

    :param Callable teacher: a Pyro model that takes the arguments of the model and has these sites,
        such as a method of ``mean_teacher.teacher``.
    :param Sequence sites: names of the sites, in the same families in model and teacher.
    :param float weight: :math:`w`.
    :param str name: name of the factor.
    :returns: the handler, which takes a model and returns one.
    :raises ValueError: when the model runs, for a name that is not a site of model or teacher, if
        the divergence is not known, or if it depends on a site that is enumerated in a plate.

    [1] Y. Lee, J. Willette, J. Kim, J. Lee, S. J. Hwang (2023), Exploring the role of mean teachers
    in self-supervised masked auto-encoders.

    Example::

        >>> def model(x, loc=1.0):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> drawn = consistency(lambda x: model(x, 3.0), ["x"])(model)
        >>> trace = pyro.poutine.trace(drawn).get_trace(torch.zeros(2))
        >>> trace.nodes["consistency"]["fn"].log_factor
        tensor(-4.)
    """
    checks.function("teacher", teacher, "a Pyro model")
    sites = checks.sequence("sites", sites, "a list of names of sites", kind=str)
    weight = checks.number("weight", weight, least=0)
    checks.instance("name", name, str, "a name of a factor")
    return _Consistency(teacher, sites, weight, name)


class _Consistency:
    """Runs a teacher beside a model, and adds a factor."""

    def __init__(
        self, teacher: Callable[..., Any], sites: Sequence[str], weight: float, name: str
    ) -> None:
        self.teacher, self.sites, self.weight, self.name = teacher, tuple(sites), weight, name

    def __call__(self, model: Callable[..., Any]) -> Callable[..., Any]:
        checks.function("model", model, "a Pyro model")
        if self.weight == 0.0:
            return model

        def run(*args: Any, **kwargs: Any) -> Any:
            with _Seen() as student:
                result = model(*args, **kwargs)
            taught = _Seen(student.values)
            with torch.no_grad(), _empty_store(), poutine.block(), taught:
                self.teacher(*args, **kwargs)
            parts = [self._divergence(site, student, taught) for site in self.sites]
            pyro.factor(self.name, -self.weight * functools.reduce(torch.add, parts))
            return result

        return functools.wraps(model, updated=())(run)

    def _divergence(self, site: str, student: "_Seen", taught: "_Seen") -> Tensor:
        for who, seen in (("model", student), ("teacher", taught)):
            if site not in seen.sites:
                raise ValueError(f"sites names {site!r}, which is no sample site of the {who}")
        (own, scale, masks, frames), (target, _, _, _) = student.sites[site], taught.sites[site]
        if own.event_shape != target.event_shape:
            raise ValueError(
                f"sites names {site!r}, whose values have the shape {tuple(own.event_shape)} in "
                f"the model and {tuple(target.event_shape)} in the teacher"
            )
        try:
            value = kl_divergence(target, own)
        except NotImplementedError as error:
            raise ValueError(
                f"sites names {site!r}, where the divergence of {own} from {target} is not known"
            ) from error
        for mask in masks:
            value = scale_and_mask(value, 1.0, mask)
        total: Tensor = scale_and_mask(value, scale)
        # Plates around the model, as of particles, and what is enumerated are the factor's as well.
        dims = [frame.dim for frame in frames if frame.vectorized and -frame.dim <= total.dim()]
        for dim, name in student.enumerated.items():
            if -dim <= total.dim() and total.shape[dim] > 1:
                raise ValueError(
                    f"sites names {site!r}, which depends on {name!r}: that is enumerated in a "
                    "plate of the model, over which the factor is a sum"
                )
        total = total.sum(dims, keepdim=True) if dims else total
        while total.dim() and len(total) == 1:
            total = total[0]
        return total


@contextmanager
def _empty_store() -> Iterator[None]:
    """Put an empty parameter store in the place of Pyro's."""
    # Its own scope() takes away what SVI knows the parameters by.
    store = pyro.get_param_store()
    kept = store.__dict__
    store.__dict__ = ParamStoreDict().__dict__
    try:
        yield
    finally:
        store.__dict__ = kept


class _Seen(Messenger):
    """Records a model's samples and their distributions, and substitutes values of another run."""

    def __init__(self, given: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.given = given
        self.values: dict[str, Tensor] = {}
        self.sites: dict[str, tuple[Any, Any, list[Any], Any]] = {}
        self.enumerated: dict[int, str] = {}  # in plates, by dimension

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if self.given is not None and msg["value"] is None and name in self.given:
            msg["value"] = self.given[name]
        # Scale, mask and plates are those within; others apply to the factor.
        distribution, masks = msg["fn"], [msg["mask"]]
        while isinstance(distribution, MaskedDistribution):
            masks.append(distribution._mask)
            distribution = distribution.base_dist
        self.sites[name] = (distribution, msg["scale"], masks, msg["cond_indep_stack"])

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["infer"].get("_deterministic", False):
            self.values[msg["name"]] = msg["value"]
        dim = msg["infer"].get("_enumerate_dim")
        if dim is not None and any(frame.vectorized for frame in self.sites[msg["name"]][3]):
            self.enumerated[dim] = msg["name"]

    def _pyro_param(self, msg: Any) -> None:
        if self.given is None or msg["value"] is not None or len(msg["args"]) < 2:
            return
        value = msg["args"][1]  # of a module; the store would give its copy a gradient
        if value is not None:
            msg["value"] = value() if callable(value) else value
