"""Draws of label vectors, and what ArviZ can judge in their place."""

from collections.abc import Sequence

from pyro_ext.posterior.draws import Arrays

__all__ = ["with_partition_quantities"]


def with_partition_quantities(arrays: Arrays, partitions: Sequence[str]) -> tuple[Arrays, Arrays]:
    """Part label vectors from the rest, which gets numbers that describe the partitions.

    Shapes: arrays (num_chains, num_draws, *event) each.
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
