"""Numbers of kinds by how often they occur: the files of the package, and how they are made."""

from collections import Counter

import pytest
import torch

from pyro_ext.checkpoint.files import read_tensors
from pyro_ext.datasets import load_frequencies
from tools.make_frequencies import make_frequencies

EXPECTED = {  # samples, kinds, kinds that occur once, the largest
    "bible_words": (789_684, 12_762, 4_040, 63_919),
    "news_words": (59_576, 7_188, 3_147, 4_135),
    "package_dependencies": (312_340, 40_584, 20_404, 22_912),
    "stemmed_words": (336_756, 27_858, 12_032, 1_450),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_tables_are_those_that_are_known(name):
    data = load_frequencies(name)
    assert data.name == name and data.description and data.source and data.license
    assert data.table.dtype == torch.int64 and data.table.shape[-1] == 2
    assert bool((data.table > 0).all()) and bool((data.table[:, 0].diff() > 0).all())
    found = data.num_samples, data.num_kinds, int(data.table[0, 1]), int(data.table[-1, 0])
    assert found == EXPECTED[name]
    assert str(EXPECTED[name][1] // 1000) in repr(data)


SOURCES = {
    "news_words": ("The end of\nthe Beginning. 'It's\n", ["the", "the", "end", "of", "beginning"]),
    "stemmed_words": ("end begin end\n", ["end", "end", "begin"]),
    "bible_words": ("Ge1:1 In the\nGe1:2 the end.\n", ["in", "the", "the", "end"]),
    "package_dependencies": (
        "Package: a\nDepends: c (>= 1) | d, e:any, c [amd64]\nPre-Depends: f\n\n"
        "Package: b\nDepends: c\nRecommends: g\n",
        ["c", "c", "d", "e", "f"],
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_sources_are_counted(name, tmp_path):
    text, kinds = SOURCES[name]
    if name == "news_words":
        kinds = [*kinds, "it's"]
    source = tmp_path / "source"
    source.write_text(text)
    path = make_frequencies(name, source, tmp_path)
    assert path == tmp_path / f"{name}.safetensors"
    tensors, facts, _ = read_tensors(path)
    expected = sorted(Counter(Counter(kinds).values()).items())
    assert tensors["table"].tolist() == [list(row) for row in expected]
    known = load_frequencies(name)
    assert facts == {
        "description": known.description,
        "source": known.source,
        "license": known.license,
    }
