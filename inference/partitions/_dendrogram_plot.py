"""Pictures of dendrograms, apart since matplotlib is slow to import and optional."""

from typing import TYPE_CHECKING

from pyro_ext._pyplot import axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyro_ext.inference.partitions.dendrogram import Dendrogram

__all__ = ["draw"]

_OPENED, _MOST_NAMES, _MOST_PROBABILITIES = "0.55", 60, 30


def draw(tree: "Dendrogram", ax: "Axes | None") -> "Axes":
    """Draw a bracket for each merge, from the left part up, across and down to the right part."""
    ax = axes_of("Dendrogram.plot", ax, (6.4, 3.6))
    leaves = _leaf_order(tree)
    places = [0.0] * tree.num_leaves
    for place, leaf in enumerate(leaves):
        places[leaf] = float(place)
    heights = [tree._ground] * tree.num_leaves + tree.heights.tolist()
    brackets = []
    for row, (left, right) in enumerate(tree.merges.tolist()):
        top = heights[tree.num_leaves + row]
        across = (places[left], places[right])
        ends = ((across[0], heights[left]), (across[1], heights[right]))
        brackets.append([ends[0], (across[0], top), (across[1], top), ends[1]])
        places.append(sum(across) / 2.0)
    from matplotlib.collections import LineCollection

    ax.add_collection(LineCollection(brackets, colors=_colours(tree), linewidths=1.2))
    if tree.merge_probabilities is not None:
        probabilities = tree.merge_probabilities.tolist()
        for row in range(len(probabilities))[-_MOST_PROBABILITIES:]:
            node = tree.num_leaves + row
            ax.annotate(
                f"{probabilities[row]:.2f}",
                (places[node], heights[node]),
                xytext=(0, 1.5),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=7,
            )
    if tree.cut_height is not None:
        ax.axhline(tree.cut_height, color="black", linestyle=":", linewidth=1)
    names = [tree._name(leaf) for leaf in leaves] if tree.num_leaves <= _MOST_NAMES else []
    ax.set_xticks(
        range(len(names)), names, rotation=90 if max(map(len, names), default=0) > 2 else 0
    )
    span = max(heights) - min(heights) or 1.0
    ax.set_xlim(-0.5, tree.num_leaves - 0.5)
    ax.set_ylim(min(heights), max(heights) + 0.08 * span)
    ax.set_ylabel("height")
    ax.spines[["top", "right", "bottom"]].set_visible(False)
    return ax


def _leaf_order(tree: "Dendrogram") -> list[int]:
    """Points from left to right, so that no lines cross."""
    merges = tree.merges.tolist()
    order: list[int] = []
    pending = [2 * tree.num_leaves - 2]
    while pending:
        node = pending.pop()
        if node < tree.num_leaves:
            order.append(node)
        else:
            left, right = merges[node - tree.num_leaves]
            pending += [right, left]
    return order


def _colours(tree: "Dendrogram") -> list[str]:
    """Colour of each merge: that of its cluster, or grey above the cut."""
    if tree.cut_height is None:
        return ["C0"] * len(tree.merges)
    opened = tree._is_opened(None, None)
    labels = tree.cut().tolist()
    of_root = dict(zip(tree._roots(opened), labels, strict=False))  # points are the first nodes
    roots = tree._roots(opened)[tree.num_leaves :]
    return [
        _OPENED if is_open else f"C{of_root[root] % 10}"
        for root, is_open in zip(roots, opened, strict=True)
    ]
