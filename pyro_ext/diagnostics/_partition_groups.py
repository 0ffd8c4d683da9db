"""Draws of label vectors, and what ArviZ can judge in their place."""

from collections.abc import Sequence

from pyro_ext.posterior.draws import Arrays

__all__ = ["with_partition_quantities"]


def with_partition_quantities(arrays: Arrays, partitions: Sequence[str]) -> tuple[Arrays, Arrays]:
    """Part label vectors from the rest, which gets numbers that describe the partitions.

    :param dict arrays: the posterior. **Shape:** ``(num_chains, num_draws, *event)`` each.
    :param Sequence partitions: which of them are label vectors.
    :returns: the rest, and the label vectors.
    :raises TypeError: where label vectors are no integers.
    :raises ValueError: where they are not there or have another shape, or a name is taken.
    """
    if unknown := sorted(set(partitions) - arrays.keys()):
        raise ValueError(f"partitions names {unknown}, but the variables are {sorted(arrays)}")
    labels = {name: arrays[name] for name in partitions}
    rest = {name: array for name, array in arrays.items() if name not in labels}
    for name, array in labels.items():
        from pyro_ext.diagnostics.partitions import partition_quantities
        from pyro_ext.diagnostics.partitions._labels import check_draws

        quantities = partition_quantities(check_draws(f"posterior[{name!r}]", array))
        added = {f"{name}_{quantity}": value.numpy() for quantity, value in quantities.items()}
        if taken := sorted(added.keys() & rest.keys()):
            raise ValueError(f"partitions names {name!r}, but the variables {taken} exist already")
        rest |= added
    return rest, labels
