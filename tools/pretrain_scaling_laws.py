"""Train the network that ships with :func:`~pyro_ext.models.scaling_laws.extrapolate`.

``python -m tools.pretrain_scaling_laws scaling_curves.safetensors`` makes the file again, from its
seed, in some five minutes on one core. The network sees draws of the prior alone, and no curve that
was measured. Half of the curves have sizes that are uniform, as in the paper, the others sizes that
are uniform on a logarithmic scale, as those of most curves that people measure. Since the latter
crowd near zero, tokens know the logarithms of sizes besides. Curves have from 10 points on, where
the paper has 50, since most measured curves have few.
"""

import argparse
from functools import partial
from pathlib import Path

import torch

from pyro_ext.inference import PriorDataFittedNetwork, PriorFittedTransformer
from pyro_ext.models.scaling_laws import sample_scaling_curves, scaling_curve_prior, scaling_grid
from pyro_ext.random import seeded

__all__ = ["pretrain_scaling_laws"]

_NUM_STEPS = 6_000
_NUM_BARS = 200


def pretrain_scaling_laws(
    num_steps: int = _NUM_STEPS,
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> PriorDataFittedNetwork:
    """Train a network on the prior of scaling curves.

    :param int num_steps: number of steps.
    :param int seed: of weights and draws.
    :param checkpoint: as of :meth:`~pyro_ext.inference.PriorDataFittedNetwork.fit`.
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
        learning_rate=2e-3,
        warm_up=0.1,
        regress_context=True,
        seed=seed,
    )
    return network.fit(num_steps, checkpoint=checkpoint, progress=progress)


def main() -> None:
    """Train and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--steps", type=int, default=_NUM_STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = pretrain_scaling_laws(options.steps, seed=options.seed, checkpoint=options.checkpoint)
    last = network.losses[-500:]
    print(f"mean loss of the last steps {sum(last) / len(last):.4f}")
    network.save(options.path, prior="scaling_curve_prior", spacing="mixed", seed=options.seed)


if __name__ == "__main__":
    main()
