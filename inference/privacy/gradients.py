r"""DP-SGD: gradients of single examples are clipped, and noise is added to their sum [1].

[1] M. Abadi, A. Chu, I. Goodfellow, H. B. McMahan, I. Mironov, K. Talwar, L. Zhang (2016), Deep
learning with differential privacy.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn.modules.batchnorm import _BatchNorm

from pyro_ext._lib import checks

ExampleLoss = Callable[..., Tensor]
"""A scalar loss of parameters by name and the rows of one example."""


def example_loss(
    module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy
) -> ExampleLoss:
    """Make the loss of a network at one example, as a function of parameters by name.

    :param torch.nn.Module module: maps inputs ``(n, *event)`` to outputs.
    :param Callable loss: maps outputs and targets to a scalar, like the losses of
        :mod:`torch.nn.functional`.
    :returns: a function of a dict of parameters, an input and a target, both without a batch
        dimension.
    :raises ValueError: for a network with batch norm in training mode, in which the outputs of an
        example depend on others; names the layer.

    Example::

        >>> network = torch.nn.Linear(3, 2)
        >>> one = example_loss(network)
        >>> one(dict(network.named_parameters()), torch.ones(3), torch.tensor(1)).shape
        torch.Size([])
    """
    checks.instance("module", module, nn.Module, "a torch.nn.Module")
    checks.function("loss", loss, "a function of outputs and targets", or_class=False)
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
            raise ValueError(
                "module must have a gradient of each example alone, which it lacks, got batch norm "
                f"{name!r} ({type(layer).__name__}), with which outputs depend on the other "
                "examples of a minibatch. Call module.eval() to use the statistics it has, or "
                "use a norm within examples, such as torch.nn.GroupNorm"
            )

    def of_example(parameters: dict[str, Tensor], inputs: Tensor, target: Tensor) -> Tensor:
        return loss(functional_call(module, parameters, (inputs[None],)), target[None])

    return of_example


def example_gradients(
    loss: ExampleLoss, parameters: Mapping[str, Tensor], *batch: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute losses and gradients of each example.

    :param Callable loss: maps a dict of parameters and the rows of one example to a scalar.
    :param Mapping parameters: tensors by name.
    :param Tensor batch: tensors with a row for each example. **Shape:** ``(n, *event)`` each.
    :returns: losses **(n,)**, and gradients by name **(n, *shape)**.

    Example::

        >>> values = {"slope": torch.tensor(2.0)}
        >>> loss = lambda values, x, y: (values["slope"] * x - y).square()
        >>> losses, gradients = example_gradients(loss, values, torch.ones(3), torch.arange(3.0))
        >>> losses, gradients["slope"]
        (tensor([4., 1., 0.]), tensor([4., 2., 0.]))
    """
    checks.function("loss", loss)
    parameters = checks.tensors("parameters", parameters)
    _check_rows("batch", batch, 1)
    every = torch.vmap(grad_and_value(loss), (None, *[0] * len(batch)), randomness="different")
    gradients, losses = every({name: p.detach() for name, p in parameters.items()}, *batch)
    return losses, gradients


def clipped_sum(
    gradients: Mapping[str, Tensor], max_norm: float
) -> tuple[dict[str, Tensor], Tensor]:
    """Sum gradients of examples, each clipped by its norm over all tensors.

    :param Mapping gradients: gradients by name. **Shape:** ``(n, *shape)`` each.
    :param float max_norm: the largest norm.
    :returns: sums by name **(*shape)**, and the norms before clipping **(n,)**.

    Example::

        >>> gradients = {"a": torch.tensor([3.0, 0.3]), "b": torch.tensor([4.0, 0.4])}
        >>> clipped_sum(gradients, 1.0)
        ({'a': tensor(0.9000), 'b': tensor(1.2000)}, tensor([5.0000, 0.5000]))
    """
    gradients = checks.tensors("gradients", gradients)
    checks.number("max_norm", max_norm, above=0.0)
    each = [gradient.reshape(len(gradient), -1) for gradient in gradients.values()]
    norms = torch.stack([torch.linalg.vector_norm(one, dim=1) for one in each]).norm(dim=0)
    factors = (max_norm / norms).clamp(max=1.0)  # one where the norm is zero
    return {
        name: torch.tensordot(factors, gradient, 1) for name, gradient in gradients.items()
    }, norms


class PrivateLoss:
    r"""A loss for :class:`~pyro_ext.inference.Trainer` with the gradients of DP-SGD [1].

    .. math:: \frac{1}{q n} \Bigl( \sum_j g_j \min\bigl(1, \tfrac{C}{\lVert g_j \rVert}\bigr)
              + \sigma C \xi \Bigr)

    with the gradient :math:`g_j` of one example in all parameters together. The batch must be a
    Poisson sample (:class:`PoissonBatches`); the sum is divided by its expected size :math:`q n`.
    :func:`pld_epsilon` computes the privacy loss of the steps. The losses themselves have no noise
    and must not be published, and PyTorch's generators are not cryptographically secure.

    :param Callable loss: maps a dict of parameters and the rows of one example to a scalar, for
        example the :func:`example_loss` of a network, or the negative log density of a point under
        a model.
    :param Mapping parameters: tensors by name, the same as those of the trainer.
    :param float max_norm: :math:`C`.
    :param float noise_multiplier: :math:`\sigma`.
    :param float expected_batch_size: :math:`q n`.
    :param int chunk_size: largest number of examples whose gradients are in memory at once;
        ``None`` for all.

    [1] M. Abadi et al. (2016), Deep learning with differential privacy, algorithm 1.

    Example::

        >>> from functools import partial
        >>> from pyro_ext.inference import Trainer
        >>> network = torch.nn.Linear(3, 2)
        >>> x, y = torch.randn(100, 3), torch.arange(100) % 2
        >>> parameters = dict(network.named_parameters())
        >>> loss = PrivateLoss(example_loss(network), parameters, max_norm=1.0,
        ...                    noise_multiplier=2.0, expected_batch_size=20)
        >>> trainer = Trainer(parameters, partial(torch.optim.SGD, lr=0.1), seed=0)
        >>> batches = PoissonBatches(x, y, sampling_rate=0.2)
        >>> len(trainer.run(loss, 10, batches, progress=False))
        10
    """

    def __init__(
        self,
        loss: ExampleLoss,
        parameters: Mapping[str, Tensor],
        *,
        max_norm: float,
        noise_multiplier: float,
        expected_batch_size: float,
        chunk_size: int | None = None,
    ) -> None:
        checks.function("loss", loss, "a function of parameters and an example", or_class=False)
        checks.tensors("parameters", parameters)
        self.loss, self.parameters = loss, parameters
        self.max_norm = checks.number("max_norm", max_norm, above=0.0)
        self.noise_multiplier = checks.number("noise_multiplier", noise_multiplier, least=0.0)
        self.expected_batch_size = checks.number(
            "expected_batch_size", expected_batch_size, above=0.0
        )
        self.chunk_size = checks.optional(checks.integer, "chunk_size", chunk_size, 1)

    def __call__(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, summed and divided by the expected size, and its private gradient.

        :param tuple batch: tensors with a row for each example; there may be none.
        :returns: a scalar, and tensors by name in the form of the parameters.
        """
        _check_rows("batch", batch)
        sums = {name: torch.zeros_like(p.detach()) for name, p in self.parameters.items()}
        value = next(iter(sums.values())).new_zeros(())
        size = len(batch[0])
        for part in zip(
            *(row.split(self.chunk_size or max(size, 1)) for row in batch), strict=True
        ):
            if size:
                losses, gradients = example_gradients(self.loss, self.parameters, *part)
                value = value + losses.sum()
                for name, total in clipped_sum(gradients, self.max_norm)[0].items():
                    sums[name] += total
        scale = self.noise_multiplier * self.max_norm
        for total in sums.values():
            if scale:
                total += scale * torch.randn_like(total)
            total /= self.expected_batch_size
        return value / self.expected_batch_size, sums


class PoissonBatches:
    """Minibatches that contain each row independently, with the same probability.

    Their size is random, and may be zero. Pass the object as ``batches`` to
    :meth:`~pyro_ext.inference.Trainer.run`; minibatches are a function of its seed.

    :param Tensor rows: tensors with the same number of rows. **Shape:** ``(num_rows, *event)``
        each.
    :param float sampling_rate: the probability.

    Example::

        >>> batches = PoissonBatches(torch.arange(1000), sampling_rate=0.1)
        >>> [len(batches(seed)[0]) for seed in range(3)]
        [88, 95, 127]
        >>> batches.expected_size
        100.0
    """

    def __init__(self, *rows: Tensor, sampling_rate: float) -> None:
        _check_rows("rows", rows, 1)
        self.rows = rows
        self.sampling_rate = checks.number("sampling_rate", sampling_rate, above=0.0, most=1.0)

    @property
    def expected_size(self) -> float:
        """Expected number of rows of a minibatch."""
        return self.sampling_rate * len(self.rows[0])

    def __call__(self, seed: int) -> tuple[Tensor, ...]:
        """The minibatch of a seed.

        :param int seed: a non-negative integer.
        :returns: rows of each tensor.
        """
        generator = torch.Generator().manual_seed(checks.integer("seed", seed, 0))
        uniform = torch.rand(
            len(self.rows[0]), dtype=torch.float64, generator=generator, device="cpu"
        )
        index = (uniform < self.sampling_rate).nonzero().flatten()
        return tuple(row[index.to(row.device)] for row in self.rows)


def _check_rows(argument: str, rows: Any, least: int = 0) -> None:
    """Check tensors with an example in each row."""
    wanted = "tensors of real numbers with a row for each example"
    rows = checks.sequence(argument, rows, wanted, 1, Tensor)
    for row in rows:
        checks.has_values(argument, row)
    sizes = {len(row) if row.dim() else -1 for row in rows}
    if len(sizes) != 1 or min(sizes) < least or any(row.is_complex() for row in rows):
        raise ValueError(
            f"{argument} must be {wanted}, as many in each{' and at least one' if least else ''}, "
            f"got {[(row.dtype, tuple(row.shape)) for row in rows]}"
        )
