"""A Markov chain of three tokens and four steps, of which every sequence can be listed."""

from itertools import product

import torch

from pyro_ext.inference import TwistedSMC
from pyro_ext.inference.smc import TabularTwist, exact_markov_twist

INIT = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
TRANS = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.25, 0.25, 0.5]], dtype=torch.float64)
# How often token 2 has come, at most twice.
COUNT = torch.tensor([[0, 0, 1], [1, 1, 2], [2, 2, 2]])
LENGTH = 4
SEQUENCES = torch.tensor(list(product(range(3), repeat=LENGTH)))
Z = 2.8081028760

EXACT = exact_markov_twist(INIT, TRANS, COUNT, torch.tensor([0.0, 0.0, 2.0]), LENGTH)


def log_target():
    """Normalized, of all sequences."""
    values = TwistedSMC(EXACT.base, None, EXACT.log_potential, length=LENGTH).target_log_prob(
        SEQUENCES
    )
    return values.log_softmax(0)


def rigid_twist(row=(1.0, 1.0, 3.0)):
    """The same twists at each step."""
    twist = TabularTwist(LENGTH, 3).double()
    with torch.no_grad():
        twist.table.copy_(torch.tensor(row, dtype=torch.float64).log().expand(LENGTH, 3))
    return twist


def sampler(twist=None, num_particles=16, log_potential=EXACT.log_potential, **options):
    return TwistedSMC(EXACT.base, twist, log_potential, num_particles, LENGTH, **options)
