"""Measured curves of the page on scaling laws: classifiers of digits, and double descent."""

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from pyro_ext.checkpoint.cached import cached_tensors
from pyro_ext.datasets import load_mnist_5k

NUM_SIZES, NUM_CONTEXT = 14, 8
LARGEST = 4_000
_NUM_TEST = 1_000
_NUM_IMAGES = 300  # of double descent


def digits() -> tuple[Tensor, Tensor]:
    """All 5,000 images at half resolution, and their labels."""
    data = load_mnist_5k()
    images = torch.cat([data.train_inputs, data.test_inputs]).reshape(-1, 1, 28, 28)
    labels = torch.cat([data.train_targets, data.test_targets])
    return avg_pool2d(images, 2).flatten(1), labels


def classifiers(seed: int) -> dict[str, Any]:
    """The classifiers of scikit-learn that have a curve."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import LinearSVC
    from sklearn.tree import DecisionTreeClassifier

    return {
        "logistic regression, C=0.01": LogisticRegression(C=0.01, max_iter=100),
        "logistic regression, C=1": LogisticRegression(C=1.0, max_iter=100),
        "linear SVM": LinearSVC(C=0.1, max_iter=200, random_state=seed),
        "1 neighbor": KNeighborsClassifier(1),
        "5 neighbors": KNeighborsClassifier(5),
        "naive Bayes": GaussianNB(var_smoothing=0.01),
        "random forest": RandomForestClassifier(50, random_state=seed),
        "tree": DecisionTreeClassifier(random_state=seed),
        "network": MLPClassifier((64,), max_iter=40, random_state=seed),
    }


def sizes() -> Tensor:
    """Numbers of images to train on."""
    return torch.logspace(np.log10(30), np.log10(LARGEST), NUM_SIZES).round()


def widths() -> Tensor:
    """Numbers of random features."""
    return torch.logspace(1.0, np.log10(3_000), NUM_SIZES).round()


def _learning_curves(seed: int, num_shuffles: int, names: Sequence[str]) -> Tensor:
    """Test errors. **Shape:** ``(num_shuffles * num_classifiers, num_sizes)``."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    images, labels = (part.numpy() for part in digits())
    curves = []
    for shuffle in range(num_shuffles):
        order = np.random.default_rng([seed, shuffle]).permutation(len(images))
        test, pool = order[:_NUM_TEST], order[_NUM_TEST:]
        every = classifiers(seed)
        for model in (every[name] for name in names):
            errors = []
            for size in sizes().int().tolist():
                chosen = pool[:size]
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    model.fit(images[chosen], labels[chosen])
                errors.append(float(np.mean(model.predict(images[test]) != labels[test])))
            curves.append(errors)
    return torch.tensor(curves)


def _descent_curves(seed: int, num_curves: int) -> Tensor:
    """Test errors of least squares of least norm on random features."""
    images, labels = digits()
    images = images.double()
    curves = []
    for number in range(num_curves):
        generator = torch.Generator().manual_seed(1_000 * seed + number)
        order = torch.randperm(len(images), generator=generator)
        test, train = order[:_NUM_TEST], order[_NUM_TEST : _NUM_TEST + _NUM_IMAGES]
        target = torch.eye(10, dtype=torch.float64)[labels[train]]
        errors = []
        for width in widths().int().tolist():
            weights = torch.randn(images.shape[1], width, generator=generator).double()
            features = [(images[rows] @ weights).relu() for rows in (train, test)]
            found = torch.linalg.pinv(features[0]) @ target
            wrong = (features[1] @ found).argmax(-1) != labels[test]
            errors.append(wrong.double().mean())
        curves.append(torch.stack(errors))
    return torch.stack(curves).float()


def measured_curves(
    seed: int,
    num_shuffles: int = 2,
    num_descents: int = 4,
    names: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """Curves of a seed, measured once on a machine.

    :param int seed: of shuffles and features.
    :param int num_shuffles: of the images, each with a curve of each classifier.
    :param int num_descents: number of curves of double descent.
    :param Sequence names: of classifiers, by default all.
    :returns: ``learning`` and ``descent``. **Shape:** ``(num_curves, num_sizes)`` each.
    """
    code = Path(__file__).read_bytes()
    versions = [metadata.version(name) for name in ("scikit-learn", "torch", "mlxtend")]
    names = list(classifiers(seed)) if names is None else list(names)
    key: list[bytes | str] = [code, *versions, f"{seed} {num_shuffles} {num_descents}", *names]

    def make() -> dict[str, Tensor]:
        return {
            "learning": _learning_curves(seed, num_shuffles, names),
            "descent": _descent_curves(seed, num_descents),
        }

    return dict(cached_tensors("scaling-curves", key, make))
