"""The data sets that ship with scikit-learn: digits, breast cancer, wine, diabetes."""

from typing import Any, Unpack

import numpy as np

from pyro_ext.datasets._dataset import (
    Dataset,
    Options,
    Settings,
    assemble,
    location_and_scale,
    optional_module,
)

_UCI_LICENCE = "BSD-3-Clause (scikit-learn); the UCI repository lists the original under CC BY 4.0"


def load_digits(**options: Unpack[Options]) -> Dataset:
    """Load 1,797 images of handwritten digits, 8 x 8 pixels, ten classes.

    Pixels ``x`` in 0 .. 16 become ``(x / 16 - 0.3) / 0.35``. The default split has 600 training and
    1,197 test images.

    Shape: inputs ``(n, 64)``, targets ``(n,)``.

    :param options: keyword arguments that all loaders take, see :class:`Options`.
    :raises ValueError: names the argument, what it got and what it allows.
    :raises ImportError: without scikit-learn; names the extra.

    Reference: E. Alpaydin and C. Kaynak (1998), *Optical Recognition of Handwritten Digits*, UCI
    Machine Learning Repository, https://archive.ics.uci.edu/dataset/80.

    Example::

        >>> from pyro_ext.datasets import load_digits
        >>> digits = load_digits()
        >>> digits
        Dataset('digits', train (600, 64), test (1197, 64), 10 classes)
        >>> digits.train_targets[:5].tolist()
        [2, 8, 2, 6, 6]
    """
    settings = Settings(**options)
    table = optional_module("sklearn.datasets", "scikit-learn").load_digits()
    return assemble(
        settings,
        settings.split(len(table.target), num_train=600),
        np.asarray(table.data, dtype=np.float64),
        np.asarray(table.target, dtype=np.int64),
        np.asarray(0.3 * 16.0),  # (x / 16 - 0.3) / 0.35 = (x - 4.8) / 5.6
        np.asarray(0.35 * 16.0),
        name="digits",
        description=(
            "8 x 8 images of handwritten digits by 13 writers; input: 64 grey levels; "
            "target: the digit."
        ),
        source=(
            "scikit-learn load_digits: test part of UCI Optical Recognition of Handwritten Digits "
            "(1998)"
        ),
        licence=_UCI_LICENCE,
        feature_names=tuple(str(feature) for feature in table.feature_names),
        class_names=tuple(str(digit) for digit in range(10)),
    )


def load_breast_cancer(**options: Unpack[Options]) -> Dataset:
    """Load 569 breast masses, 30 features of their cell nuclei, malignant (0) or benign (1).

    Features have mean 0 and standard deviation 1 over the training part. The default split is 455
    and 114 rows.

    Shape: inputs ``(n, 30)``, targets ``(n,)``.

    :param options: keyword arguments that all loaders take, see :class:`Options`.
    :raises ValueError: names the argument, what it got and what it allows.
    :raises ImportError: without scikit-learn; names the extra.

    Reference: W. Wolberg, O. Mangasarian, N. Street and W. Street (1995), *Breast Cancer Wisconsin
    (Diagnostic)*, UCI Machine Learning Repository, https://archive.ics.uci.edu/dataset/17.

    Example::

        >>> from pyro_ext.datasets import load_breast_cancer
        >>> masses = load_breast_cancer()
        >>> masses
        Dataset('breast_cancer', train (455, 30), test (114, 30), 2 classes)
        >>> masses.class_names
        ('malignant', 'benign')
    """
    settings = Settings(**options)
    table = optional_module("sklearn.datasets", "scikit-learn").load_breast_cancer()
    return _standardised(
        "breast_cancer",
        table,
        settings,
        description=(
            "Breast masses; input: mean, standard error and worst value of ten properties of the "
            "cell nuclei in an image of a fine needle aspirate; target: malignant or benign."
        ),
        source="scikit-learn load_breast_cancer: UCI Breast Cancer Wisconsin (Diagnostic) (1995)",
        licence=_UCI_LICENCE,
    )


def load_wine(**options: Unpack[Options]) -> Dataset:
    """Load 178 wines, 13 chemical measurements, three cultivars.

    Features have mean 0 and standard deviation 1 over the training part. The default split is 142
    and 36 rows.

    Shape: inputs ``(n, 13)``, targets ``(n,)``.

    :param options: keyword arguments that all loaders take, see :class:`Options`.
    :raises ValueError: names the argument, what it got and what it allows.
    :raises ImportError: without scikit-learn; names the extra.

    Reference: S. Aeberhard and M. Forina (1992), *Wine*, UCI Machine Learning Repository,
    https://archive.ics.uci.edu/dataset/109.

    Example::

        >>> from pyro_ext.datasets import load_wine
        >>> load_wine(num_train=100, num_test=50)
        Dataset('wine', train (100, 13), test (50, 13), 3 classes)
    """
    settings = Settings(**options)
    table = optional_module("sklearn.datasets", "scikit-learn").load_wine()
    return _standardised(
        "wine",
        table,
        settings,
        description=(
            "Italian wines of one region; input: 13 chemical measurements; "
            "target: one of three cultivars."
        ),
        source="scikit-learn load_wine: UCI Wine (1992)",
        licence=_UCI_LICENCE,
    )


def load_diabetes(**options: Unpack[Options]) -> Dataset:
    """Load 442 diabetes patients, ten measurements, and the disease's progression after a year.

    A regression. Features and responses have mean 0 and standard deviation 1 over the training
    part; ``target_loc`` and ``target_scale`` undo it for the responses. The default split is 354
    and 88 rows.

    Shape: inputs ``(n, 10)``, targets ``(n,)``.

    :param options: keyword arguments that all loaders take, see :class:`Options`.
    :raises ValueError: names the argument, what it got and what it allows.
    :raises ImportError: without scikit-learn; names the extra.

    Reference: B. Efron, T. Hastie, I. Johnstone and R. Tibshirani (2004), *Least Angle Regression*,
    Annals of Statistics 32, 407-499, https://doi.org/10.1214/009053604000000067.

    Example::

        >>> from pyro_ext.datasets import load_diabetes
        >>> patients = load_diabetes()
        >>> patients
        Dataset('diabetes', train (354, 10), test (88, 10), regression)
        >>> progression = patients.train_targets * patients.target_scale + patients.target_loc
        >>> round(progression.min().item()), round(progression.max().item())
        (25, 346)
    """
    settings = Settings(**options)
    table = optional_module("sklearn.datasets", "scikit-learn").load_diabetes(scaled=False)
    rows = settings.split(len(table.target))
    inputs = np.asarray(table.data, dtype=np.float64)
    responses = np.asarray(table.target, dtype=np.float64)
    target_loc, target_scale = location_and_scale(responses[rows[0]])
    return assemble(
        settings,
        rows,
        inputs,
        (responses - target_loc) / target_scale,
        *location_and_scale(inputs[rows[0]]),
        name="diabetes",
        description=(
            "Diabetes patients; input: age, sex, body mass index, blood pressure and six blood "
            "serum measurements; target: a measure of disease progression after one year."
        ),
        source="scikit-learn load_diabetes: Efron, Hastie, Johnstone and Tibshirani (2004)",
        licence="BSD-3-Clause (scikit-learn); the original source states none",
        feature_names=tuple(str(feature) for feature in table.feature_names),
        target_loc=float(target_loc),
        target_scale=float(target_scale),
    )


def _standardised(name: str, table: Any, settings: Settings, **facts: Any) -> Dataset:
    """Split one of scikit-learn's labelled tables and standardise its features."""
    inputs = np.asarray(table.data, dtype=np.float64)
    rows = settings.split(len(inputs))
    return assemble(
        settings,
        rows,
        inputs,
        np.asarray(table.target, dtype=np.int64),
        *location_and_scale(inputs[rows[0]]),
        name=name,
        feature_names=tuple(str(feature) for feature in table.feature_names),
        class_names=tuple(str(label) for label in table.target_names),
        **facts,
    )
