"""Descriptions of Matplotlib figures in words, for readers who cannot see them."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def describe_figure(figure: "Figure") -> str:
    """Describe the titles, axes and legends of a figure, one sentence for each panel."""
    title = figure.get_suptitle()
    panels = [text for axes in figure.axes if (text := _panel(axes))]
    count = f"{len(figure.axes)} panels" if len(figure.axes) > 1 else ""
    legends = _legend(legend.get_texts() for legend in figure.legends)
    return _plain(". ".join(filter(None, [title, count, *dict.fromkeys(panels), legends])))


def _panel(axes: "Axes") -> str:
    """Title, axes and legend of a panel, as far as it has them."""
    x, y = axes.get_xlabel(), axes.get_ylabel()
    what = f"{y} against {x}" if x and y else x or y
    legend = axes.get_legend()
    lines = _legend([legend.get_texts()] if legend else [])
    return "; ".join(filter(None, [": ".join(filter(None, [axes.get_title(), what])), lines]))


def _legend(texts: Iterable[Iterable[object]]) -> str:
    """Names in legends."""
    names = [str(text.get_text()) for group in texts for text in group]  # type: ignore[attr-defined]
    return f"for {', '.join(filter(None, names))}" if any(names) else ""


def _plain(text: str) -> str:
    """Text without the marks of formulas and in one line."""
    text = re.sub(r"\\mathdefault|\\(?:math|text)[a-z]+|[${}]", "", text)
    return " ".join(text.replace("\\", "").split())
