"""What a figure shows is said in words, and saved with the picture."""

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from pyro_ext.reproduction import Page
from pyro_ext.reproduction.figure_text import describe_figure


def test_axes_titles_and_legends():
    figure, (left, right) = plt.subplots(ncols=2)
    figure.suptitle("Two ways")
    left.plot([1, 2], label=r"$\alpha = 1$")
    left.set(xlabel="step", ylabel="$x^2$\nin all", title="short")
    left.legend()
    right.set(ylabel="error")
    figure.legend(["all"])
    text = "Two ways. 2 panels. short: x^2 in all against step; for alpha = 1. error. for all"
    assert describe_figure(figure) == text


@pytest.mark.parametrize("num_panels", [1, 3])
def test_without_words(num_panels):
    figure, _ = plt.subplots(num_panels)
    assert describe_figure(figure) == ("" if num_panels == 1 else "3 panels")


def test_saved_with_the_picture(tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_EXT_FIGURES", str(tmp_path))
    figure, axes = plt.subplots()
    axes.set(xlabel="time", ylabel="Länge")
    Page("a-page").figure("lengths", figure)
    with Image.open(tmp_path / "lengths.png") as image:
        assert image.info["Description"] == "Länge against time"
