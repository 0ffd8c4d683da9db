"""The page on masked autoencoders with mean teachers: its parts, and in full its claims."""

import pytest
import torch
from scipy.stats import linregress

from pyro_ext.nn import teacher_gradient_decomposition
from tests.pages import check_short_report

pytest.importorskip("mlxtend")

PAGE = "rc-mae"
pytestmark = pytest.mark.slow


def test_short_run_saves_a_report_and_figures(short_run):
    _, folder = short_run
    check_short_report(folder, PAGE, 7, {"gradient", "reconstructions"})


def test_a_wrong_momentum_is_seen(short_run):
    """By the slope, where theory has another one."""
    names, _ = short_run
    wrong = teacher_gradient_decomposition(*names["linear"][0], 0.6, 0.05)
    assert linregress(wrong.similarity, wrong.undone).slope > 1.1 * 0.05 * 0.5


def test_digits_have_gray_levels_from_zero_to_one(short_run):
    names, _ = short_run
    assert float(names["digits"].min()) == pytest.approx(0.0, abs=1e-6)
    assert float(names["digits"].max()) == pytest.approx(1.0)


def test_errors_are_relative_to_means_of_pixels(short_run):
    names, _ = short_run
    images, network = names["images"], names["networks"]["MAE"][0][0]

    class Means(type(network)):
        def forward(self, x, order):
            return self.patchify(images).mean(0).expand(len(x), -1, -1)

    assert names["error"](Means((1, 28, 28), 7)) == pytest.approx(1.0)


def test_student_and_rivals_start_alike(short_run):
    """With one seed they have the same weights, and the same masks."""
    names, _ = short_run
    first = names["mae"]["error"][0]
    assert names["rc_mae"]["error"][0] == first  # two steps, and no memory
    assert names["slow"]["error"][0] != first


def test_the_probe_reads_classes_from_features(short_run):
    names, _ = short_run
    targets = torch.nn.functional.one_hot

    class Knows:
        def features(self, images):
            labels = names["labels"] if len(images) == names["NUM_LABELS"] else names["test_labels"]
            return targets(labels[: len(images)], 10).float()

    assert names["probe"](Knows()) == 1.0
