"""Dendrograms: cuts and conversions against trees worked out by hand, and against SciPy."""

import sys

import numpy as np
import pytest
import torch
from scipy.cluster import hierarchy

from pyro_ext.inference.partitions import Dendrogram

MERGES = torch.tensor([[1, 3], [0, 4], [2, 5], [6, 7]])
#                      8 = (6, 7); 7 = (2, 5), 6 = (0, 4), 5 = (1, 3)
PLAIN = Dendrogram(MERGES, torch.tensor([1.0, 2.0, 3.0, 4.0]))
# Node 5 lies above node 7, of which it is a part.
INVERTED = Dendrogram(MERGES, torch.tensor([3.5, 2.0, 3.0, 4.0]))
# So does node 7 above the root.
STEEP = Dendrogram(MERGES, torch.tensor([1.0, 2.0, 6.0, 4.0]))


def test_cut_by_height(subtests):
    for tree, height, expected in [
        (PLAIN, 4.0, [0, 0, 0, 0, 0]),
        (PLAIN, 3.9, [0, 1, 1, 1, 0]),
        (PLAIN, 2.5, [0, 1, 2, 1, 0]),
        (PLAIN, 1.0, [0, 1, 2, 1, 3]),
        (PLAIN, 0.5, [0, 1, 2, 3, 4]),
        # The part is above the bound, the node that holds it is not, and so stays closed.
        (INVERTED, 3.2, [0, 1, 1, 1, 0]),
        (INVERTED, 2.9, [0, 1, 2, 3, 0]),
        (STEEP, 5.0, [0, 0, 0, 0, 0]),
        (STEEP, 3.0, [0, 1, 2, 1, 0]),
        (STEEP, -1.0, [0, 1, 2, 3, 4]),
    ]:
        with subtests.test(tree=tree, height=height, expected=expected):
            labels = tree.cut(height=height)
            assert labels.dtype == torch.long and labels.tolist() == expected


def test_cut_by_number_opens_the_highest_present_node():
    rows = [PLAIN.cut(number).tolist() for number in range(1, 6)]
    assert rows == [
        [0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 1, 2, 1, 0],
        [0, 1, 2, 1, 3],
        [0, 1, 2, 3, 4],
    ]
    # After the root and node 7 their part, node 5, is the highest, and not node 6.
    assert INVERTED.cut(4).tolist() == [0, 1, 2, 3, 0]
    assert INVERTED.opening_levels.tolist() == [3.0, 2.0, 3.0, 4.0]
    assert STEEP.cut(2).tolist() == [0, 1, 1, 1, 0]
    for tree in (PLAIN, INVERTED, STEEP):
        for height in (0.5, 1.5, 2.5, 3.7, 5.0):
            labels = tree.cut(height=height)
            assert torch.equal(labels, tree.cut(int(labels.max()) + 1))


def test_cut_by_the_tree_s_own_height():
    tree = Dendrogram(MERGES, PLAIN.heights, cut_height=2.5)
    assert torch.equal(tree.cut(), PLAIN.cut(height=2.5))
    assert torch.equal(tree.cut(height=3.9), PLAIN.cut(height=3.9))
    assert repr(tree) == "Dendrogram(5 leaves, heights 1 to 4, 3 clusters at 2.5)"
    with pytest.raises(ValueError, match="num_clusters or height must be given"):
        PLAIN.cut()
    with pytest.raises(ValueError, match="num_clusters must be at most 5"):
        PLAIN.cut(6)


@pytest.mark.parametrize("method", ["ward", "average", "single", "centroid"])
def test_scipy_reads_and_writes_it(method):
    """Centroid linkage has inversions."""
    points = np.random.default_rng(3).normal(size=(60, 2))
    linkage = hierarchy.linkage(points, method)
    tree = Dendrogram(torch.tensor(linkage[:, :2]).long(), torch.tensor(linkage[:, 2]))
    np.testing.assert_array_equal(tree.to_scipy_linkage(), linkage)
    assert hierarchy.is_valid_linkage(tree.to_scipy_linkage())
    assert hierarchy.is_monotonic(linkage) == (method != "centroid")
    if method == "centroid":
        return
    for number in (1, 2, 7, 60):
        expected = hierarchy.fcluster(linkage, number, "maxclust")
        ours = tree.cut(number).numpy()
        assert len(set(zip(ours, expected, strict=True))) == number == len(set(ours))


def test_negative_heights_are_raised_for_scipy():
    tree = Dendrogram(MERGES, torch.tensor([-3.0, -1.0, 0.0, 2.0]))
    linkage = tree.to_scipy_linkage()
    assert linkage[:, 2].tolist() == [0.0, 2.0, 3.0, 5.0]
    assert hierarchy.is_valid_linkage(linkage)


def test_one_point():
    tree = Dendrogram(torch.empty(0, 2, dtype=torch.long), torch.empty(0), cut_height=1.0)
    assert tree.num_leaves == 1 and repr(tree) == "Dendrogram(1 leaf, 1 cluster at 1)"
    assert tree.cut().tolist() == tree.cut(1).tolist() == [0]
    with pytest.raises(ValueError, match="one point"):
        tree.to_scipy_linkage()


def test_is_a_value():
    heights = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    tree = Dendrogram(MERGES, heights)
    heights[0] = 9.0
    assert tree.heights[0] == 1.0
    with pytest.raises(AttributeError):
        tree.heights = heights


def test_bad_trees(subtests):
    for options, message in [
        ({"merges": torch.tensor([[0, 2]])}, "earlier rows"),
        ({"merges": torch.tensor([[0, 0]])}, "each node once"),
        ({"heights": torch.ones(2)}, r"heights must have the shape \(1,\)"),
        ({"merge_probabilities": [1.5]}, "merge_probabilities must be from 0 to 1"),
        ({"labels": ["a"]}, "labels must be 2, got 1"),
    ]:
        with subtests.test(message), pytest.raises(ValueError, match=message):
            Dendrogram(**{"merges": torch.tensor([[0, 1]]), "heights": torch.ones(1)} | options)


def test_plot():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    tree = Dendrogram(
        MERGES, PLAIN.heights, merge_probabilities=[0.9, 0.8, 0.5, 0.1], cut_height=2.5
    )
    _, axes = pyplot.subplots()
    assert tree.plot(axes) is axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "4", "2", "1", "3"]
    (brackets,) = axes.collections
    corners = [segment.tolist() for segment in brackets.get_segments()]
    assert corners[0] == [[3, 0], [3, 1], [4, 1], [4, 0]]  # points 1 and 3
    assert corners[2] == [[2, 0], [2, 3], [3.5, 3], [3.5, 1]]  # point 2, and those
    assert [text.get_text() for text in axes.texts] == ["0.90", "0.80", "0.50", "0.10"]
    assert axes.texts[2].xy == (2.75, 3.0)
    colors = [pyplot.matplotlib.colors.to_rgba(name) for name in ("C1", "C0", "0.55", "0.55")]
    np.testing.assert_allclose(brackets.get_colors(), colors)
    assert axes.lines[0].get_ydata()[0] == 2.5


def test_plot_of_negative_heights_starts_below_them():
    pytest.importorskip("matplotlib.pyplot")
    axes = Dendrogram(MERGES, torch.tensor([-3.0, -1.0, 0.0, 2.0])).plot()
    assert axes.get_ylim()[0] == -3.0


def test_plot_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"Dendrogram.plot needs.*pyro-ext\[plots\]"):
        PLAIN.plot()
