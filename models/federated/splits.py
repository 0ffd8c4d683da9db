"""Splits of data into clients."""

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.random import fresh_seed, seeded


def dirichlet_split(
    labels: Tensor, num_clients: int, concentration: float = 0.5, seed: int | None = None
) -> list[Tensor]:
    """Divide rows among clients that see the classes in different proportions [1].

    The clients' shares of each class follow a symmetric Dirichlet distribution.

    :param Tensor labels: integers. **Shape:** ``(n,)``.
    :param int num_clients: number of clients; some may get no rows.
    :param float concentration: concentration of the Dirichlet distribution; with a small one, most
        of a class goes to one client.
    :param int seed: seed of the split.
    :returns: row numbers of each client, in order.
    :raises ValueError: for labels of a single class.

    [1] T.-M. H. Hsu, H. Qi, M. Brown (2019), Measuring the effects of non-identical data
    distribution for federated visual classification.

    Example::

        >>> parts = dirichlet_split(torch.arange(100) % 10, num_clients=3, seed=0)
        >>> [len(part) for part in parts]
        [29, 26, 45]
    """
    labels = checks.as_tensor("labels", labels, "(n,)", kind="integers").cpu()
    checks.integer("num_clients", num_clients, 1)
    checks.number("concentration", concentration, above=0.0)
    classes = labels.unique()
    if len(classes) < 2:
        raise ValueError(f"labels must have at least two classes, got {classes.tolist()} alone")
    parts: list[list[Tensor]] = [[] for _ in range(num_clients)]
    with seeded(fresh_seed(seed)):
        prior = torch.distributions.Dirichlet(torch.full((num_clients,), float(concentration)))
        for label in classes:
            rows = (labels == label).nonzero().flatten()
            rows = rows[torch.randperm(len(rows))]
            ends = (prior.sample().double().cumsum(0) * len(rows)).round().long()[:-1]
            for part, own in zip(parts, rows.tensor_split(ends), strict=True):
                part.append(own)
    return [torch.cat(part).sort().values for part in parts]
