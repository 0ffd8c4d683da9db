"""Bayesian networks as Pyro models: priors, initialization and predictions."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext._lib.own_shapes import OwnShapes
from pyro_ext.potential import Layout, init_to_suggested
from pyro_ext.reparam import ExpandedModule
from pyro_ext.reparam.modules import gains


class BayesianModule(nn.Module):
    r"""A network with independent normal priors, :math:`w \sim \text{Normal}(0, \sigma^2)`.

    Call it like the network, inside a Pyro model. It samples every parameter under its name in the
    network. The gain of a normalization layer, which is the ``weight`` of a module with ``Norm`` in
    its class name, has a prior around one, since a gain of zero would block the signal.
    :func:`pyro_ext.reparam.expand_module` does the same with parameter expansion; its draws have
    the same names.

    :param torch.nn.Module module: the network. It is copied, and the values of its parameters do
        not matter.
    :param prior_scale: :math:`\sigma`, one number for all parameters, or a mapping from shell-style
        patterns of parameter names to numbers; the first matching pattern counts, and
        ``"default"`` matches the rest. By default, it is one over the square root of the fan-in for
        matrices and convolution kernels, so that layer outputs have size one whatever the width
        [1], and one for vectors.
    :raises ValueError: if a scale is not positive, a pattern matches no parameter, a parameter has
        no scale, or the module has no parameters.

    [1] R. M. Neal (1996), Bayesian learning for neural networks.

    Example::

        >>> from pyro_ext.nn import MLP
        >>> network = BayesianModule(MLP(4, [8], 3), {"*.bias": 1.0, "default": 0.5})
        >>> trace = pyro.poutine.trace(network).get_trace(torch.zeros(5, 4))
        >>> trace.stochastic_nodes
        ['0.weight', '0.bias', '2.weight', '2.bias']
        >>> network.prior_scales["2.weight"], trace.nodes["_RETURN"]["value"].shape
        (0.5, torch.Size([5, 3]))
        >>> BayesianModule(MLP(4, [16], 3)).prior_scales
        {'0.weight': 0.5, '0.bias': 1.0, '2.weight': 0.25, '2.bias': 1.0}
    """

    def __init__(
        self, module: nn.Module, prior_scale: float | Mapping[str, float] | None = None
    ) -> None:
        checks.instance("module", module, nn.Module, "a torch.nn.Module")
        super().__init__()
        self.module = copy.deepcopy(module).requires_grad_(False)
        parameters = dict(self.module.named_parameters())
        names = list(parameters)
        if not names:
            raise ValueError(f"module must have parameters, got {type(module).__name__}")
        if prior_scale is None:
            prior_scale = {name: _fan_in(value) ** -0.5 for name, value in parameters.items()}
        elif isinstance(prior_scale, Mapping):
            for pattern, scale in prior_scale.items():
                checks.number(f"prior_scale[{pattern!r}]", scale, above=0.0)
        else:
            prior_scale = checks.number("prior_scale", prior_scale, above=0.0)
        shapes, types = dict.fromkeys(names, torch.Size()), dict.fromkeys(names, torch.float64)
        layout = Layout(shapes, types, torch.device("cpu"))
        scales = layout.expand(prior_scale, "prior_scale").tolist()
        self.prior_scales: dict[str, float] = dict(zip(names, scales, strict=True))
        self.gains = gains(self.module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Sample the parameters, and run the network with them.

        :param args: arguments of the network.
        :param kwargs: keyword arguments of the network.
        :returns: the output of the network.
        """
        values: dict[str, Tensor] = {}
        for name, parameter in self.module.named_parameters():
            scale = parameter.new_full((), self.prior_scales[name])
            loc = torch.full_like(scale, name in self.gains)
            prior = dist.Normal(loc, scale).expand(parameter.shape)
            with OwnShapes():
                values[name] = pyro.sample(name, prior.to_event(parameter.dim()))
        return torch.func.functional_call(self.module, values, args, kwargs)


def _fan_in(parameter: Tensor) -> int:
    """Number of inputs that an output sums over, one for vectors."""
    return parameter[0].numel() if parameter.dim() > 1 else 1


# What one call works on: so many pairs of a draw and a point, and of numbers in their inputs.
_PAIRS_PER_CALL = 2**16
_NUMBERS_PER_CALL = 2**22


class BayesianClassifier(nn.Module):
    """Pyro model of labels whose logits come from a Bayesian network.

    The sites are the parameters of the network, outside of the plate ``"data"``, and ``"label"``
    inside it.

    :param network: a :class:`BayesianModule`, or the result of
        :func:`pyro_ext.reparam.expand_module`, around a network that maps inputs ``(n, *event)`` to
        logits ``(n, classes)``.
    :param int batch_size: size of the minibatches. The model uses all of the data if it is ``None``
        or at least the number of points.
    :raises TypeError: for other kinds of networks.

    Example::

        >>> from pyro_ext.inference import MCMC, SGHMC
        >>> from pyro_ext.nn import MLP, BayesianModule
        >>> inputs, labels = torch.randn(60, 4), torch.arange(60) % 3
        >>> classifier = BayesianClassifier(BayesianModule(MLP(4, [8], 3), 0.5), batch_size=20)
        >>> kernel = SGHMC(classifier, step_size=0.01, friction=5.0)
        >>> mcmc = MCMC(kernel, 10, num_chains=2, seed=0, progress=False).run(inputs, labels)
        >>> draws = mcmc.get_samples(group_by_chain=True)
        >>> classifier.probabilities(draws, inputs).shape
        torch.Size([2, 10, 60, 3])
    """

    def __init__(
        self, network: BayesianModule | ExpandedModule, batch_size: int | None = None
    ) -> None:
        super().__init__()
        kinds = "a BayesianModule or an ExpandedModule"
        checks.instance("network", network, (BayesianModule, ExpandedModule), kinds)
        self.network = network
        self.batch_size = checks.optional(checks.integer, "batch_size", batch_size, 1)

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """Run the model.

        :param Tensor inputs: **Shape:** ``(n, *event)``.
        :param Tensor labels: observed classes; without them, the model draws labels. **Shape:**
            ``(n,)``.
        :returns: the labels of the minibatch.
        """
        _check_labels(inputs, labels)
        size = self.batch_size
        is_whole = size is None or size >= len(inputs)
        plate = pyro.plate("data", len(inputs), subsample_size=None if is_whole else size)
        if not is_whole:
            inputs = inputs[plate.indices]
            labels = None if labels is None else labels[plate.indices]
        logits = self.network(inputs)
        if logits.dim() != 2 or len(logits) != len(inputs):
            raise ValueError(
                f"network must return the shape ({len(inputs)}, classes), got {tuple(logits.shape)}"
            )
        with plate:
            label: Tensor = pyro.sample("label", dist.Categorical(logits=logits), obs=labels)
        return label

    def log_probabilities(self, samples: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Log predictive probabilities under posterior draws; no gradient flows through them.

        :param Mapping samples: draws of the parameters, by their names in the network. Other sites
            are ignored. For an expanded network, you can pass its factors instead. **Shape:**
            ``(*leading, *event)`` each.
        :param Tensor inputs: **Shape:** ``(n, *event)``.
        :returns: **Shape:** ``(*leading, n, classes)``.
        """
        module = self.network.module
        like = next(module.parameters())
        inputs = checks.as_tensor("inputs", inputs, "(n, ...)", like=like, finite=True)
        samples = checks.tensors("samples", samples)
        shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        if isinstance(self.network, ExpandedModule) and not set(shapes) <= set(samples):
            samples = self.network.merge(samples)
        leading = Layout(shapes, {}, torch.device("cpu")).check_leading(samples, "samples")
        flat = {name: samples[name].detach().reshape(-1, *shape) for name, shape in shapes.items()}
        if not leading.numel():
            raise ValueError("samples must not be empty, got no draws")

        def one(values: dict[str, Tensor], some: Tensor) -> Tensor:
            logits: Tensor = torch.func.functional_call(module, values, (some,))
            return logits.log_softmax(-1)

        pairs = max(1, min(_PAIRS_PER_CALL, _NUMBERS_PER_CALL // inputs[0].numel()))
        parts = []
        with torch.no_grad():
            for some in inputs.split(pairs):
                size = max(1, pairs // len(some))
                parts.append(torch.vmap(one, (0, None), chunk_size=size)(flat, some))
        whole = torch.cat(parts, 1)
        return whole.reshape(*leading, *whole.shape[1:])

    def probabilities(self, samples: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Predictive probabilities, with the arguments and shapes of :meth:`log_probabilities`."""
        return self.log_probabilities(samples, inputs).exp()

    def log_likelihood(
        self, samples: Mapping[str, Tensor], inputs: Tensor, labels: Tensor
    ) -> Tensor:
        """Log likelihood of each label under posterior draws.

        :param Mapping samples: as in :meth:`log_probabilities`.
        :param Tensor inputs: **Shape:** ``(n, *event)``.
        :param Tensor labels: observed classes. **Shape:** ``(n,)``.
        :returns: **Shape:** ``(*leading, n)``.
        """
        inputs = checks.as_tensor("inputs", inputs, "(n, ...)")
        labels = checks.as_tensor("labels", labels, f"({len(inputs)},)", kind="integers")
        _check_labels(inputs, labels)
        logs = self.log_probabilities(samples, inputs)
        if not bool(((labels >= 0) & (labels < logs.shape[-1])).all()):
            raise ValueError(
                f"labels must be classes below {logs.shape[-1]}, got {labels.tolist()!r:.80}"
            )
        return logs.gather(-1, labels.expand(logs.shape[:-1]).unsqueeze(-1)).squeeze(-1)


def _check_labels(inputs: Tensor, labels: Tensor | None) -> None:
    if labels is not None and labels.shape != inputs.shape[:1]:
        raise ValueError(
            f"labels must have the shape ({len(inputs)},), one for each of the inputs, got "
            f"{tuple(labels.shape)}"
        )


def init_to_module(site: dict[str, Any] | None = None, module: nn.Module | None = None) -> Any:
    """Initialize a network's parameters as for training, independently for each chain.

    It calls ``reset_parameters`` of the layer that a site belongs to. Parameters of layers without
    that method start at their values in the module, and all other sites at their suggested values.

    :param dict site: a site of the model. Without it, the strategy itself is returned.
    :param torch.nn.Module module: the network. Its parameters must have the names of the sites, or
        of the sites without the suffix ``".V"``.
    :returns: the value of the site, or a strategy to pass to kernels as ``init_strategy``.
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
    checks.optional(checks.instance, "site", site, dict, "a site of a model or None")
    checks.instance("module", module, nn.Module, "a torch.nn.Module")
    assert module is not None
    if site is None:
        return partial(init_to_module, module=module)
    path = site["name"].removesuffix(".V")
    if path not in dict(module.named_parameters()):
        return init_to_suggested(site)
    prefix, _, name = path.rpartition(".")
    owner: Any = copy.deepcopy(module.get_submodule(prefix))
    if callable(getattr(owner, "reset_parameters", None)):
        owner.reset_parameters()
    value: Tensor = getattr(owner, name)
    return value.detach().clone()
