"""Real time series: the file of the package, and how it is made."""

import zipfile

import torch

from pyro_ext.datasets import _shipped, load_time_series
from tools.make_time_series import make_time_series

TRAIN, TEST = (
    f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts" for part in ("TRAIN", "TEST")
)


def test_series_are_those_that_are_known():
    """Sizes are those that the source tells, numbers the first and last of its lines."""
    data = load_time_series("japanese_vowels")
    assert data.name == "japanese_vowels" and "CC BY 4.0" in data.license
    assert data.description and "https://doi.org/10.24432/C5NS47" in data.source
    assert data.train_values.shape == (270, 29, 12) and data.test_values.shape == (370, 29, 12)
    assert data.train_labels.bincount().tolist() == [30] * 9 and data.num_classes == 9
    assert data.test_labels.bincount().tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    lengths = torch.cat([data.train_lengths, data.test_lengths])
    assert (int(lengths.min()), int(lengths.max())) == (7, 29)
    for values, own in (
        (data.train_values, data.train_lengths),
        (data.test_values, data.test_lengths),
    ):
        padding = torch.arange(29) >= own[:, None]
        assert bool((values[padding] == 0).all()) and bool(values[~padding].any(-1).all())
    first = data.train_values[0, : data.train_lengths[0], 0].double()
    assert data.train_lengths[0] == 20
    assert [round(float(value), 6) for value in first[[0, 1, -1]]] == [1.860936, 1.891651, 1.261441]
    assert repr(data) == (
        "TimeSeriesData('japanese_vowels', train (270, 29, 12), test (370, 29, 12), 9 classes)"
    )


def test_a_source_is_read(tmp_path, monkeypatch):
    source = tmp_path / "wheel"
    with zipfile.ZipFile(source, "w") as archive:
        head = "# words: none\n@problemName P\n@classLabel true b a\n@data\n"
        archive.writestr(TRAIN, head + "1,2,3:4,5,6:b\n7.5:8.5:a\n")
        archive.writestr(TEST, head + "-1,-2:3,4:b\n")
    path = make_time_series("japanese_vowels", source, tmp_path)
    assert path == tmp_path / "japanese_vowels.safetensors"
    monkeypatch.setattr(_shipped, "_TIME_SERIES", tmp_path)
    data = load_time_series("japanese_vowels")
    assert data.train_lengths.tolist() == [3, 1] and data.train_labels.tolist() == [1, 0]
    expected = [[[1, 4], [2, 5], [3, 6]], [[7.5, 8.5], [0, 0], [0, 0]]]
    assert data.train_values.tolist() == expected
    assert data.test_values.tolist() == [[[-1, 3], [-2, 4], [0, 0]]]
    assert data.test_labels.tolist() == [1]
