"""Train the network that ships with :func:`~pyro_ext.models.scaling_laws.extrapolate`.

``python -m tools.pretrain_scaling_laws scaling_curves.safetensors`` makes the file again, from its
seed, in some fifteen minutes on one core. The network is trained in stages, in each of which the
learning rate rises and falls to zero, and the file is written after each of them. It sees draws of
the prior alone, and no curve that was measured. Half of the curves have sizes that are uniform, as
in the paper, the others sizes that are uniform on a logarithmic scale, as those of most curves that
people measure. Since the latter crowd near zero, tokens know the logarithms of sizes besides.
Curves have from 10 points on, where the paper has 50, since most measured curves have few.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from pyro_ext.inference import PriorDataFittedNetwork, PriorFittedTransformer
from pyro_ext.models.scaling_laws import sample_scaling_curves, scaling_curve_prior, scaling_grid
from pyro_ext.random import seeded

__all__ = ["pretrain_scaling_laws"]

_STAGES = ((6_000, 2e-3), (8_000, 1.5e-3))  # steps and largest learning rate
_NUM_BARS = 200


def pretrain_scaling_laws(
    path: Path,
    stages: Sequence[tuple[int, float]] = _STAGES,
    *,
    seed: int = 0,
    resume: bool = False,
    progress: bool = True,
) -> PriorDataFittedNetwork:
    """Train a network on the prior of scaling curves, and write it after each stage.

    :param Path path: the file.
    :param Sequence stages: numbers of steps and largest learning rates.
    :param int seed: of weights and draws.
    :param bool resume: whether to keep the state of each stage in a file beside, from which a
        training that was stopped goes on.
    :param bool progress: whether to show a progress bar.
    """
    with seeded(seed):
        net = PriorFittedTransformer(_NUM_BARS, log_inputs=True)
    network = PriorDataFittedNetwork(
        scaling_curve_prior,
        net,
        inputs=partial(scaling_grid, spacing="mixed"),
        sampler=sample_scaling_curves,
        num_points=(10, 60),
        regress_context=True,
        seed=seed,
    )
    for number, (num_steps, learning_rate) in enumerate(stages):
        state = path.with_name(f"{path.name}.{number}") if resume else None
        network.fit(
            num_steps,
            learning_rate=learning_rate,
            warm_up=0.1,
            checkpoint=state,
            progress=progress,
        )
        network.save(path, prior="scaling_curve_prior", spacing="mixed", seed=seed)
    return network


def main() -> None:
    """Train and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="Go on where it was stopped.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = pretrain_scaling_laws(options.path, seed=options.seed, resume=options.resume)
    last = network.losses[-500:]
    print(f"mean loss of the last steps {sum(last) / len(last):.4f}")


if __name__ == "__main__":
    main()
