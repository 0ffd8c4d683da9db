"""Classification with a Bayesian network: the Pyro model, and what its draws predict."""

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ext._checks import as_tensor, check_integer, check_tensors
from pyro_ext.nn.bayesian import BayesianModule
from pyro_ext.potential import Layout
from pyro_ext.reparam import ExpandedModule

__all__ = ["BayesianClassifier"]

# What one call works on: so many pairs of a draw and a point, and of numbers in their inputs.
_PAIRS_PER_CALL = 2**16
_NUMBERS_PER_CALL = 2**22


class BayesianClassifier(nn.Module):
    """Labels that follow the logits of a Bayesian network, as a Pyro model.

    Sites are the parameters of the network, outside of the plate ``"data"``, and ``"label"`` in it.

    :param network: a :class:`BayesianModule`, or what :func:`pyro_ext.reparam.expand_module`
        returns, around a network that maps inputs ``(n, *event)`` to logits ``(n, classes)``.
    :param int batch_size: size of the minibatches; all of the data where it is ``None`` or not
        less than their number.
    :raises TypeError: for a network of another kind.
    :raises ValueError: for a size that is no integer of at least one.

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
        if not isinstance(network, BayesianModule | ExpandedModule):
            raise TypeError(
                f"network must be a BayesianModule or an ExpandedModule, got {network!r:.80}"
            )
        self.network = network
        self.batch_size = None if batch_size is None else check_integer("batch_size", batch_size, 1)

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """Run the model.

        :param Tensor inputs: **Shape:** ``(n, *event)``.
        :param Tensor labels: observed classes; without them the model draws some. **Shape:**
            ``(n,)``.
        :returns: the labels of the minibatch.
        :raises ValueError: where shapes do not fit.
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
            are passed over. The factors of an expanded network do in their place. **Shape:**
            ``(*leading, *event)`` each.
        :param Tensor inputs: **Shape:** ``(n, *event)``.
        :returns: **Shape:** ``(*leading, n, classes)``.
        :raises ValueError: where a parameter is missing, or shapes do not fit.
        """
        like = next(self.network.module.parameters())
        inputs = as_tensor("inputs", inputs, "(n, ...)", like=like, finite=True)
        samples = check_tensors("samples", samples)
        module = self.network.module
        shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        if isinstance(self.network, ExpandedModule) and not set(shapes) <= set(samples):
            samples = self.network.merge(samples)
        leading = Layout(shapes, {}, torch.device("cpu")).check_leading(samples, "samples")
        flat = {name: samples[name].detach().reshape(-1, *shape) for name, shape in shapes.items()}
        num_draws = leading.numel()
        if not num_draws or not len(inputs):
            raise ValueError(
                f"samples and inputs must not be empty, got {num_draws} draws and {len(inputs)} "
                "inputs"
            )

        def one(values: dict[str, Tensor], some: Tensor) -> Tensor:
            logits: Tensor = torch.func.functional_call(module, values, (some,))
            return logits.log_softmax(-1)

        pairs = max(1, min(_PAIRS_PER_CALL, _NUMBERS_PER_CALL // max(1, inputs[0].numel())))
        parts = []
        with torch.no_grad():
            for some in inputs.split(pairs):
                size = max(1, pairs // len(some))
                parts.append(torch.vmap(one, (0, None), chunk_size=size)(flat, some))
        whole = torch.cat(parts, 1)
        return whole.reshape(*leading, *whole.shape[1:])

    def probabilities(self, samples: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Predictive probabilities; arguments and shapes as of :meth:`log_probabilities`."""
        return self.log_probabilities(samples, inputs).exp()

    def log_likelihood(
        self, samples: Mapping[str, Tensor], inputs: Tensor, labels: Tensor
    ) -> Tensor:
        """Log likelihood of each label under posterior draws.

        :param Mapping samples: as of :meth:`log_probabilities`.
        :param Tensor inputs: **Shape:** ``(n, *event)``.
        :param Tensor labels: observed classes. **Shape:** ``(n,)``.
        :returns: **Shape:** ``(*leading, n)``.
        :raises ValueError: where a parameter is missing, or shapes do not fit.
        """
        inputs = as_tensor("inputs", inputs, "(n, ...)")
        labels = as_tensor("labels", labels, f"({len(inputs)},)", kind="integers")
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
