"""Return types of the loaders, their common parts, and splits and scales of data sets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext._lib import checks

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Scale: TypeAlias = Callable[[Floats], tuple[Floats, Floats]]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A real data set as tensors with a fixed split into a training and a test part.

    Inputs are shifted and scaled; ``inputs * input_scale + input_loc`` gives the values of the
    source. Likewise, the targets of a regression are ``targets * target_scale + target_loc``. Class
    labels are ``int64`` from 0.

    Shape: ``inputs (n, *event)``, ``targets (n,)``, ``indices (n,)``, ``input_loc`` and
    ``input_scale`` broadcast against ``(n, *event)``.

    :param name: the name to pass to :func:`pyro_ext.datasets.load`.
    :param train_inputs: inputs of the training part.
    :param train_targets: class labels or standardized responses of the training part.
    :param test_inputs: inputs of the test part.
    :param test_targets: class labels or standardized responses of the test part.
    :param train_indices: the rows of the source that form the training part, in order.
    :param test_indices: the rows of the source that form the test part, in order.
    :param input_loc: the values subtracted from the source's inputs.
    :param input_scale: the values by which the inputs were then divided.
    :param description: what the rows, the inputs and the targets are.
    :param source: where the data come from.
    :param license: the terms of the package that contains the data, and of the data if stated.
    :param feature_names: one name per feature, if there are names.
    :param class_names: one name per class; ``None`` for a regression.
    :param target_loc: the value subtracted from the source's responses (0 for class labels).
    :param target_scale: the value by which the responses were then divided (1 for class labels).
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
    license: str
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

    :param test_fraction: fraction of the rows that form the test part, strictly between 0 and 1.
        Do not combine it with ``num_train`` or ``num_test``.
    :param num_train: number of rows in the training part, the first of the permutation. Default:
        all that ``num_test`` leaves.
    :param num_test: number of rows in the test part, the next of the permutation. Default: all that
        ``num_train`` leaves.
    :param split_seed: seed of ``numpy.random.RandomState(split_seed).permutation``, by default 0.
    :param dtype: floating-point type of inputs and responses, by default float32.
    :param device: device of the tensors. Default: torch's default device.
    """

    test_fraction: float | None
    num_train: int | None
    num_test: int | None
    split_seed: int
    dtype: torch.dtype
    device: torch.device | str | None


@dataclass(frozen=True)
class Settings:
    """The :class:`Options` of a loader with their defaults, checked before any data is read."""

    test_fraction: float | None = None
    num_train: int | None = None
    num_test: int | None = None
    split_seed: int = 0
    dtype: torch.dtype = torch.float32
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        """Check every argument."""
        if self.test_fraction is not None:
            checks.number("test_fraction", self.test_fraction, above=0.0, below=1.0)
            if self.num_train is not None or self.num_test is not None:
                raise ValueError(
                    "test_fraction cannot be combined with num_train or num_test, got "
                    f"test_fraction={self.test_fraction!r}, num_train={self.num_train!r}, "
                    f"num_test={self.num_test!r}"
                )
        for argument in ("num_train", "num_test"):
            if (count := getattr(self, argument)) is not None:
                checks.integer(argument, count, 1)
        if checks.integer("split_seed", self.split_seed, 0) > _LARGEST_SEED:
            raise ValueError(f"split_seed must be at most {_LARGEST_SEED}, got {self.split_seed}")
        if self.dtype not in _DTYPES:
            raise ValueError(
                f"dtype must be one of {', '.join(map(str, _DTYPES))}, got {self.dtype!r}"
            )
        try:
            torch.empty(0, dtype=self.dtype, device=self.device)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ValueError(
                f"device must be a device that torch can use here, got {self.device!r} ({error})"
            ) from error

    def split(self, total: int, num_train: int | None = None) -> tuple[Integers, Integers]:
        """Permute ``0 .. total - 1`` once and cut it into training rows and test rows."""
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
                f"most {total}, got num_train={self.num_train!r}, num_test={self.num_test!r}"
            )
        order = np.random.RandomState(int(self.split_seed)).permutation(total).astype(np.int64)
        return order[:train], order[train : train + test]


class Contents(NamedTuple):
    """Contents of a data set."""

    inputs: Floats  # (n, *event)
    targets: npt.NDArray[Any]  # labels or responses, (n,) or (n, num_responses)
    feature_names: tuple[str, ...] | None = None  # one name per feature, where there are names
    class_names: tuple[str, ...] | None = None  # one name per class; None for a regression


def standardize(values: Floats, axis: int | None = 0) -> tuple[Floats, Floats]:
    """Mean and population standard deviation; a constant feature gets the scale 1."""
    constant = np.ptp(values, axis=axis) == 0.0
    scale = np.where(constant, 1.0, np.std(values, axis=axis))
    return np.asarray(np.mean(values, axis=axis)), scale


@dataclass(frozen=True)
class Record:
    """Description of a data set, available without reading it.

    :param str name: the name to pass to :func:`pyro_ext.datasets.load`.
    :param str description: what the rows, the inputs and the targets are.
    :param str source: where the data come from.
    :param str license: the terms of the package that contains the data, and of the data if stated.
    :param tuple shape: the shape of all inputs.
    :param Callable read: a function that reads the data.
    :param Callable scale: a function of the training inputs that returns the values to subtract
        from inputs and the values to divide them by.
    :param int num_train: the default number of rows in the training part; ``None`` means 80%.
    :param bool scales_targets: whether responses are standardized too.
    """

    name: str
    description: str
    source: str
    license: str
    shape: tuple[int, ...]
    read: Callable[[], Contents]
    scale: Scale = standardize
    num_train: int | None = None
    scales_targets: bool = False

    def load(self, **options: Any) -> Dataset:
        """Read the data, scale it in double precision, and cut it into parts."""
        settings = Settings(**options)
        train, test = settings.split(self.shape[0], self.num_train)
        inputs, targets, feature_names, class_names = self.read()
        loc, scale = self.scale(inputs[train])
        target_loc, target_scale = 0.0, 1.0
        if self.scales_targets:
            found = standardize(np.asarray(targets[train], dtype=np.float64))
            targets = (targets - found[0]) / found[1]
            target_loc, target_scale = float(found[0]), float(found[1])

        def tensor(values: npt.NDArray[Any]) -> Tensor:
            dtype = torch.int64 if values.dtype.kind == "i" else settings.dtype
            return torch.tensor(values, dtype=dtype, device=settings.device)

        return Dataset(
            name=self.name,
            train_inputs=tensor((inputs[train] - loc) / scale),
            train_targets=tensor(targets[train]),
            test_inputs=tensor((inputs[test] - loc) / scale),
            test_targets=tensor(targets[test]),
            train_indices=tensor(train),
            test_indices=tensor(test),
            input_loc=tensor(loc),
            input_scale=tensor(scale),
            description=self.description,
            source=self.source,
            license=self.license,
            feature_names=feature_names,
            class_names=class_names,
            target_loc=target_loc,
            target_scale=target_scale,
        )
