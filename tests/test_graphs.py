"""Real graphs: the files of the package, and how they are made."""

import pytest
import torch

from pyro_ext.datasets import _shipped, load_graph
from tools.make_graphs import make_graph

EXPECTED = {  # nodes, edges, the two largest degrees, nodes with one edge
    "new_testament_names": (545, 1_965, [132, 88], 77),
    "python_packages": (4_370, 12_911, [505, 431], 1_150),
    "us_airports": (305, 2_834, [173, 150], 46),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_graphs_are_those_that_are_known(name):
    data = load_graph(name)
    assert data.name == name and data.description and data.source and data.license
    assert data.edges.dtype == torch.int64 and bool((data.edges[:, 0] < data.edges[:, 1]).all())
    assert len(data.edges.unique(dim=0)) == len(data.edges)
    degrees = data.edges.flatten().bincount(minlength=data.num_nodes)
    assert int(degrees.min()) == 1
    largest = degrees.sort(descending=True).values[:2].tolist()
    found = data.num_nodes, len(data.edges), largest, int((degrees == 1).sum())
    assert found == EXPECTED[name]
    assert f"{data.num_nodes:,} nodes" in repr(data)


SOURCES = {  # lines, and edges between names in alphabetical order
    "new_testament_names": (
        [
            "Ge1:1 He came unto Eve, to Seth. Peace (Ruth said) to you: peace.",
            "Mat1:1 And Adam saw Eve; but Jo saw Eve and Peace (Ruth too).",
            "Mat1:2 The man Seth saw Adam.",
        ],
        [("Adam", "Eve"), ("Adam", "Seth")],
    ),
    "python_packages": (
        [
            "Package: python3-b",
            "Depends: python3-a (>= 1) | python3-c, libc6, python3-none",
            "",
            "Package: python3-a",
            "Pre-Depends: python3-b, python3-a",
            "",
            "Package: python3-c",
            "Recommends: python3-a",
            "",
            "Package: tool",
            "Depends: python3-a",
        ],
        [("python3-a", "python3-b"), ("python3-b", "python3-c")],
    ),
    "us_airports": (
        ["origin,destination,count", "JFK,ATL,9", "ATL,JFK,8", "ATL,ATL,1", "BOS,JFK,2"],
        [("ATL", "JFK"), ("BOS", "JFK")],
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_sources_are_read(name, tmp_path, monkeypatch):
    lines, expected = SOURCES[name]
    source = tmp_path / "source"
    source.write_text("\n".join(lines))
    known = load_graph(name)
    path = make_graph(name, source, tmp_path)
    assert path == tmp_path / f"{name}.safetensors"
    monkeypatch.setattr(_shipped, "_GRAPHS", tmp_path)
    data = load_graph(name)
    numbers = {
        node: i for i, node in enumerate(sorted({node for pair in expected for node in pair}))
    }
    assert data.num_nodes == len(numbers)
    assert data.edges.tolist() == [[numbers[first], numbers[second]] for first, second in expected]
    facts = (data.description, data.source, data.license)
    assert facts == (known.description, known.source, known.license)
