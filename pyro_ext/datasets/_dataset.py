"""The value every loader returns, and the split and standardisation that all loaders share."""

import numbers
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext import _optional

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A real data set as tensors with a fixed split into a training and a test part.

    Inputs are shifted and scaled; ``inputs * input_scale + input_loc`` are the values that the
    source holds. The same holds for the targets of a regression, ``targets * target_scale +
    target_loc``. Class labels are ``int64`` from 0.

    Shape: ``inputs (n, *event)``, ``targets (n,)``, ``indices (n,)``, ``input_loc`` and
    ``input_scale`` broadcast against ``(n, *event)``.

    :param name: the name that :func:`pyro_ext.datasets.load` knows the data set by.
    :param train_inputs: inputs of the training part.
    :param train_targets: class labels or standardised responses of the training part.
    :param test_inputs: inputs of the test part.
    :param test_targets: class labels or standardised responses of the test part.
    :param train_indices: the rows of the source that form the training part, in order.
    :param test_indices: the rows of the source that form the test part, in order.
    :param input_loc: what was subtracted from the source's inputs.
    :param input_scale: what the inputs were then divided by.
    :param description: what the rows, the inputs and the targets are.
    :param source: where the data comes from.
    :param licence: the terms of the package that carries the data, and of the data where they are
        stated.
    :param feature_names: one name per feature, where there are names.
    :param class_names: one name per class; ``None`` for a regression.
    :param target_loc: what was subtracted from the source's responses (0 for class labels).
    :param target_scale: what the responses were then divided by (1 for class labels).
    """

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    train_indices: Tensor
    test_indices: Tensor
    input_loc: Tensor
    input_scale: Tensor
    description: str
    source: str
    licence: str
    feature_names: tuple[str, ...] | None = None
    class_names: tuple[str, ...] | None = None
    target_loc: float = 0.0
    target_scale: float = 1.0

    @property
    def num_classes(self) -> int | None:
        """The number of classes; ``None`` for a regression."""
        return None if self.class_names is None else len(self.class_names)

    def __repr__(self) -> str:
        """Show the name, the shapes and the kind of target; never the numbers."""
        target = "regression" if self.class_names is None else f"{len(self.class_names)} classes"
        return (
            f"Dataset({self.name!r}, train {tuple(self.train_inputs.shape)}, "
            f"test {tuple(self.test_inputs.shape)}, {target})"
        )


class Options(TypedDict, total=False):
    """Keyword arguments that every loader takes.

    :param test_fraction: fraction of the rows that form the test part, strictly between 0 and 1;
        excludes the two counts.
    :param num_train: rows of the training part, the first of the permutation; without it, all that
        ``num_test`` leaves.
    :param num_test: rows of the test part, the next of the permutation; without it, all that
        ``num_train`` leaves.
    :param split_seed: seed of ``numpy.random.RandomState(split_seed).permutation``, by default 0.
    :param dtype: floating-point type of inputs and responses, by default float32.
    :param device: where the tensors live; by default torch's default device.
    """

    test_fraction: float | None
    num_train: int | None
    num_test: int | None
    split_seed: int
    dtype: torch.dtype
    device: torch.device | str | None


@dataclass(frozen=True)
class Settings:
    """The :class:`Options` of a loader with their defaults, checked when they are made.

    :raises ValueError: names the argument, what it got and what it allows.
    """

    test_fraction: float | None = None
    num_train: int | None = None
    num_test: int | None = None
    split_seed: int = 0
    dtype: torch.dtype = torch.float32
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        """Check every argument before any data is read."""
        if self.test_fraction is not None:
            fraction = self.test_fraction
            if isinstance(fraction, bool) or not _is_real(fraction) or not 0.0 < fraction < 1.0:
                raise ValueError(
                    f"test_fraction must be a number strictly between 0 and 1; got {fraction!r}"
                )
            if self.num_train is not None or self.num_test is not None:
                raise ValueError(
                    "test_fraction cannot be combined with num_train or num_test; got "
                    f"test_fraction={fraction!r}, num_train={self.num_train!r}, "
                    f"num_test={self.num_test!r}"
                )
        for argument in ("num_train", "num_test"):
            count = getattr(self, argument)
            if count is not None and not (_is_integer(count) and count >= 1):
                raise ValueError(f"{argument} must be a positive integer; got {count!r}")
        if not (_is_integer(self.split_seed) and 0 <= self.split_seed < 2**32):
            raise ValueError(
                f"split_seed must be an integer in 0 .. 2**32 - 1; got {self.split_seed!r}"
            )
        if self.dtype not in _DTYPES:
            raise ValueError(
                f"dtype must be one of {', '.join(map(str, _DTYPES))}; got {self.dtype!r}"
            )
        try:
            torch.empty(0, dtype=self.dtype, device=self.device)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ValueError(
                f"device must be a device that torch can use here; got {self.device!r} ({error})"
            ) from error

    def split(
        self, total: int, num_train: int | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Permute ``0 .. total - 1`` once and cut it into training rows and test rows.

        :param total: number of rows of the source.
        :param num_train: size of the training part where no argument says another; 80% where this
            is ``None``.
        :returns: rows of the training part, rows of the test part.
        :raises ValueError: where the two parts need more rows than there are.
        """
        train, test = self.num_train, self.num_test
        if train is None:
            if test is None and self.test_fraction is None and num_train is not None:
                test = total - num_train
            elif test is None:
                fraction = 0.2 if self.test_fraction is None else float(self.test_fraction)
                test = min(max(round(fraction * total), 1), total - 1)
            train = total - test
        elif test is None:
            test = total - train
        if train < 1 or test < 1 or train + test > total:
            raise ValueError(
                "num_train and num_test must leave at least one row to each part and add up to at "
                f"most {total}; got num_train={self.num_train!r}, num_test={self.num_test!r}"
            )
        order = np.random.RandomState(int(self.split_seed)).permutation(total).astype(np.int64)
        return order[:train], order[train : train + test]


def assemble(
    settings: Settings,
    rows: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    inputs: npt.NDArray[np.float64],
    targets: npt.NDArray[np.float64] | npt.NDArray[np.int64],
    loc: npt.NDArray[np.float64],
    scale: npt.NDArray[np.float64],
    **facts: Any,
) -> Dataset:
    """Shift and scale the inputs in double precision, cut them into parts and make the tensors.

    :param settings: the loader's checked arguments.
    :param rows: rows of the training part, rows of the test part.
    :param inputs: the source's inputs, ``(n, *event)``.
    :param targets: labels, or responses that are standardised already, ``(n,)``.
    :param loc: what to subtract from the inputs.
    :param scale: what to divide them by.
    :param facts: the other fields of :class:`Dataset`.
    """

    def tensor(values: npt.NDArray[Any]) -> Tensor:
        dtype = torch.int64 if values.dtype.kind == "i" else settings.dtype
        return torch.tensor(values, dtype=dtype, device=settings.device)

    train, test = rows
    return Dataset(
        train_inputs=tensor((inputs[train] - loc) / scale),
        train_targets=tensor(targets[train]),
        test_inputs=tensor((inputs[test] - loc) / scale),
        test_targets=tensor(targets[test]),
        train_indices=tensor(train),
        test_indices=tensor(test),
        input_loc=tensor(loc),
        input_scale=tensor(scale),
        **facts,
    )


def location_and_scale(
    values: npt.NDArray[np.float64], axis: int | None = 0
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the mean and the population standard deviation; a constant feature gets the scale 1.

    :param values: ``(n, *event)``.
    :param axis: 0 for one mean and scale per feature, ``None`` for one of all the numbers together.
    """
    constant = np.ptp(values, axis=axis) == 0.0
    scale = np.where(constant, 1.0, np.std(values, axis=axis))
    return np.asarray(np.mean(values, axis=axis)), scale


def optional_module(module: str, package: str) -> ModuleType:
    """Import a module of an optional package, or say which extra brings it.

    :param module: the module's import name.
    :param package: the package's name in the package index.
    :raises ImportError: names the extra to install.
    """
    return _optional.optional_module(module, "this data set", package, "data")


def _is_integer(value: object) -> bool:
    """Say whether a value is an integer number and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    """Say whether a value is a real number."""
    return isinstance(value, numbers.Real)
