"""Train the network that ships with :func:`~pyro_ext.models.scaling_laws.extrapolate`.

``python -m tools.pretrain_scaling_laws scaling_curves.safetensors`` makes the file again, from its
seed, in some five minutes on one core. The network sees draws of the prior alone, and no curve
that was measured. Half of the curves have sizes that are uniform, as in the paper, the others sizes
that are uniform on a logarithmic scale, as those of most curves that people measure.
A second stage of ``--short-steps``, which the file that ships has not had, takes these alone, and
fewer points, since most curves have few.
"""

import argparse
from functools import partial
from pathlib import Path

import torch

from pyro_ext.inference import PriorDataFittedNetwork
from pyro_ext.models.scaling_laws import sample_scaling_curves, scaling_curve_prior, scaling_grid

__all__ = ["pretrain_scaling_laws"]

_WARM_UP = 2_000  # steps in which the learning rate rises


def pretrain_scaling_laws(
    num_steps: int = 3_500,
    num_short: int = 0,
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> PriorDataFittedNetwork:
    """Train a network on the prior of scaling curves, in two stages.

    :param int num_steps: number of steps with 24 to 60 points.
    :param int num_short: number of steps after that with 10 to 32 points.
    :param int seed: of weights and draws.
    :param checkpoint: as of :meth:`~pyro_ext.inference.PriorDataFittedNetwork.fit`.
    :param bool progress: whether to show a progress bar.
    """
    network = PriorDataFittedNetwork(
        scaling_curve_prior,
        inputs=partial(scaling_grid, spacing="mixed"),
        sampler=sample_scaling_curves,
        warm_up=min(_WARM_UP / max(num_steps, 1), 4.0 / 7.0),
        seed=seed,
    )
    network.fit(num_steps, checkpoint=checkpoint, progress=progress)
    if not num_short:
        return network
    short = PriorDataFittedNetwork(
        scaling_curve_prior,
        network.net,
        network.borders,
        inputs=partial(scaling_grid, spacing="log"),
        sampler=sample_scaling_curves,
        num_points=(10, 32),
        warm_up=0.1,
        seed=seed + 1,
    )
    short.fit(num_short, progress=progress)
    network.losses += short.losses
    return network


def main() -> None:
    """Train and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--steps", type=int, default=3_500)
    parser.add_argument("--short-steps", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = pretrain_scaling_laws(
        options.steps, options.short_steps, seed=options.seed, checkpoint=options.checkpoint
    )
    last = network.losses[-500:]
    print(f"mean loss of the last steps {sum(last) / len(last):.4f}")
    network.save(options.path, prior="scaling_curve_prior", spacing="mixed", seed=options.seed)


if __name__ == "__main__":
    main()
