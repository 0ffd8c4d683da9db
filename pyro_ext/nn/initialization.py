"""Where chains of Bayesian networks start."""

import copy
from functools import partial
from typing import Any

from torch import Tensor, nn

from pyro_ext._checks import check_instance
from pyro_ext.potential import init_to_suggested

__all__ = ["init_to_module"]


def init_to_module(site: dict[str, Any] | None = None, module: nn.Module | None = None) -> Any:
    """Start parameters of a network as the network is initialized for training, each chain anew.

    A draw from a wide prior is a bad start, and one from a narrow prior passes nothing on through
    the layers. This strategy calls ``reset_parameters`` of the layer that a site belongs to;
    parameters of layers without it start as they are in the module, and all other sites, such as
    the square factors of parameter expansion, where they ask for it.

    :param dict site: a site of the model; without it the strategy itself is returned.
    :param torch.nn.Module module: the network, whose parameters have the names of sites, or of
        sites without their ending ``".V"``.
    :returns: the value of the site, or a strategy for ``init_strategy`` of kernels.
    :raises TypeError: without a module.

    Example::

        >>> from pyro_ext.inference import SGHMC
        >>> from pyro_ext.nn import MLP, BayesianClassifier, BayesianModule
        >>> network = MLP(4, [8], 3)
        >>> classifier = BayesianClassifier(BayesianModule(network, 2.0), batch_size=20)
        >>> kernel = SGHMC(classifier, step_size=0.01, init_strategy=init_to_module(module=network))
        >>> kernel.setup(0, torch.randn(60, 4), torch.arange(60) % 3)
        >>> kernel.begin(range(2), seed=0).position.abs().amax() <= 0.5
        tensor(True)
    """
    if site is not None:
        check_instance("site", site, dict, "a site of a model or None")
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {module!r:.80}")
    if site is None:
        return partial(init_to_module, module=module)
    path = site["name"].removesuffix(".V")
    if path not in dict(module.named_parameters()):
        return init_to_suggested(site)
    prefix, _, name = path.rpartition(".")
    owner = module.get_submodule(prefix)
    if callable(getattr(owner, "reset_parameters", None)):
        anew: Any = copy.deepcopy(owner)
        anew.reset_parameters()
        owner = anew
    value: Tensor = getattr(owner, name)
    return value.detach().clone()
