"""Make the files of :func:`pyro_ext.datasets.load_scaling_curves` from published tables.

``python -m tools.make_scaling_curves FOLDER`` reads ``language.csv`` and
``double_descent_width.csv`` there, and writes the files into the package. Of a curve with more than
48 points those are kept whose ranks are evenly spaced.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import torch

from pyro_ext import datasets
from pyro_ext.checkpoint.files import write_tensors

__all__ = ["make_scaling_curves"]

_MOST = 48
_NAMES = {"NMT": "translation", "LM": "language_modeling", "BB": "big_bench"}
_BENCHMARK = (
    "I. Alabdulmohsin, B. Neyshabur, X. Zhai (2022), Revisiting neural scaling laws in language "
    "and vision: its benchmark, as redistributed at github.com/DongWooLee-Eli/nslpfn"
)
_DESCENT = (
    "P. Nakkiran et al. (2019), Deep double descent, as redistributed at "
    "github.com/DongWooLee-Eli/nslpfn"
)
_DESCRIPTIONS = {
    "translation": "log perplexity of translation models against examples seen",
    "language_modeling": "validation loss of language models against examples seen",
    "big_bench": "loss of a language model on tasks of BIG-Bench against examples seen",
    "double_descent": "test error of a translation model, in percent, against its width",
}

Points = list[tuple[float, float, bool]]


def make_scaling_curves(source: Path, target: Path) -> None:
    """Read the tables and write the files.

    :param Path source: folder of the tables.
    :param Path target: folder of the files.
    """
    groups: dict[str, dict[str, Points]] = defaultdict(lambda: defaultdict(list))
    with open(source / "language.csv", newline="") as file:
        for row in csv.DictReader(file):
            curve = f"{row['Task']} {row['Model']}"
            point = float(row["Seen Examples"]), float(row["Loss"]), row["Training"] == "1"
            groups[_NAMES[row["Domain"]]][curve].append(point)
    with open(source / "double_descent_width.csv", newline="") as file:
        points = [(float(row["n"]), float(row["test_error"])) for row in csv.DictReader(file)]
        groups["double_descent"]["width"] = [
            (*point, number < len(points) // 2) for number, point in enumerate(sorted(points))
        ]
    target.mkdir(exist_ok=True)
    for name, curves in groups.items():
        rows, numbers = [], []
        for number, points_of in enumerate(curves.values()):
            ordered = sorted(points_of)
            chosen = torch.linspace(0, len(ordered) - 1, min(_MOST, len(ordered))).round().long()
            rows += [ordered[index] for index in chosen.tolist()]
            numbers += [number] * len(chosen)
        x, y, given = zip(*rows, strict=True)
        tensors = {
            "curve": torch.tensor(numbers),
            "x": torch.tensor(x, dtype=torch.float64),
            "y": torch.tensor(y, dtype=torch.float64),
            "given": torch.tensor(given),
        }
        facts = {
            "description": _DESCRIPTIONS[name],
            "source": _DESCENT if name == "double_descent" else _BENCHMARK,
            "license": "MIT",
        }
        write_tensors(target / f"{name}.safetensors", tensors, facts)


def main() -> None:
    """Write the files into the package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    make_scaling_curves(
        parser.parse_args().source, Path(datasets.__file__).with_name("scaling_curves")
    )


if __name__ == "__main__":
    main()
