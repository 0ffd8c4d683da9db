"""A training that came to nothing says so, and one that did not is left in peace."""

import warnings

import pytest
import torch

from pyro_ext.inference.training import Trainer, TrainingWarning
from pyro_ext.inference.training.outcome import warn_of_losses, warn_of_validation

STEPS = torch.arange(200.0, dtype=torch.float64)
NOISE = torch.randn(200, generator=torch.Generator().manual_seed(0)).double()
CAUCHY = torch.randn(200, generator=torch.Generator().manual_seed(1)).double() ** -3
FALLS = -STEPS / 200


# The losses, and whether they are bound to be a failure.
LOSSES = {
    "constant": (torch.ones(200), True),
    "rises": (-FALLS, True),
    "rises with noise": (5 * -FALLS + NOISE, True),
    "jumps and stays": ((STEPS > 20).double() + 0.1 * NOISE, True),
    "leaves an optimum": (-FALLS + 3 * NOISE, False),
    "falls": (FALLS, False),
    "falls with noise": (FALLS + 3 * NOISE, False),
    "falls at once": (STEPS.exp().reciprocal(), False),
    "noise": (NOISE, False),
    "noise with heavy tails": (CAUCHY, False),
    "one outlier": (FALLS + 1e6 * (STEPS == 199), False),
    "short": (torch.ones(99), False),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (-100.0, 1e-3), (3.0, 1e6)])
def test_losses_of_any_scale(name, shift, scale):
    losses, is_failure = LOSSES[name]
    losses = (shift + scale * losses).tolist()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_losses(losses)
    assert len(caught) == is_failure
    if is_failure:
        assert caught[0].category is TrainingWarning
        assert f"last {len(losses) // 10} steps" in str(caught[0].message)


def test_noise_alone_is_no_failure():
    """Of ten thousand trainings that are noise none is accused."""
    generator = torch.Generator().manual_seed(2)
    for row in torch.randn(10_000, 100, generator=generator, dtype=torch.float64).tolist():
        warn_of_losses(row)


@pytest.mark.parametrize("best", [1.0, 2.0, 0.95, float("nan")])
def test_what_it_was_judged_by(best):
    with pytest.warns(TrainingWarning, match=f"the score is {best:g}, before it was 1.*, or wait"):
        warn_of_validation("the score", best, 1.0, least=0.1, advice="wait")
    warn_of_validation("the score", 0.8, 1.0, least=0.1)
    warn_of_validation("the score", -0.2, -0.1, least=0.1)


def test_a_training_that_gets_worse():
    x = torch.ones(1, requires_grad=True)
    trainer = Trainer([x])
    trainer.run(lambda: x.sum(), 100, progress=False)
    with pytest.warns(
        TrainingWarning, match="brought no improvement.* a smaller learning"
    ) as caught:
        trainer.run(lambda: x.sum() + trainer.num_steps, 200, progress=False)
    assert caught[0].filename == __file__


def test_rows_that_are_lost():
    x = torch.ones(3, requires_grad=True)
    weight = torch.tensor([1.0, torch.inf, 1.0])
    with pytest.warns(TrainingWarning, match="1 of 3 rows ended at a loss .* the first .* row 1"):
        Trainer([x], independent_rows=True).run(lambda: weight * x, 2, progress=False)
