"""The bootstrap: its distribution, what is centered, and the loss."""

import math

import pytest
import torch

from pyro_ext.models.neural_processes import BNP
from pyro_ext.models.neural_processes.conditional import (
    centered,
    rows_of,
    uniform_numbers,
)
from tests.models.neural_processes.helpers import make, tasks

NUM_DRAWS = 20_000


@pytest.mark.statistical
def test_rows_are_uniform_among_those_that_are_there(float64):
    """Shares within 5 standard errors for 10 cells; one seed in 170,000 fails."""
    presence = torch.tensor([[True, False, True, True, False], [True] * 5, [False] * 4 + [True]])
    generator = torch.Generator().manual_seed(0)
    drawn = rows_of(uniform_numbers(presence, NUM_DRAWS, generator), presence)
    assert drawn.shape == (NUM_DRAWS, 3, 5)
    for task in range(3):
        count = int(presence[task].sum())
        # Draws at different places are independent of each other; each is looked at on its own.
        for row in range(5):
            share = float((drawn[:, task, 1] == row).double().mean())
            expected = 1 / count if presence[task, row] else 0.0
            error = math.sqrt(expected * (1 - expected) / NUM_DRAWS)
            assert abs(share - expected) <= 5 * error
    first, second = drawn[:, 1, 0].double(), drawn[:, 1, 1].double()
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1]
    assert abs(correlation) < 5 / math.sqrt(NUM_DRAWS)


def test_centred_residuals_have_mean_zero():
    residuals, presence = torch.randn(4, 2, 5, 3), torch.rand(2, 5) < 0.6
    presence[0, :2] = True
    found = centered(residuals, presence)
    for task in range(2):
        mean = found[:, task, presence[task]].mean(-2)
        if presence[task].any():
            torch.testing.assert_close(mean, torch.zeros(4, 3), atol=1e-6, rtol=0)


def test_bootstrapped_outputs_have_centred_residuals():
    """Seen from outside: the same network on the same resampled context gives their mean."""
    process, batch = BNP(2, 3, 16), tasks()
    context = batch.context
    found = process._draw(context, 6, torch.Generator().manual_seed(0))
    uniform = uniform_numbers(context.presence(), 6, torch.Generator().manual_seed(0))
    chosen = rows_of(uniform, context.presence())
    for k in range(6):
        inputs = torch.stack([context.inputs[task, chosen[k, task]] for task in range(4)])
        outputs = torch.stack([context.outputs[task, chosen[k, task]] for task in range(4)])
        representation = process.encoder(inputs, outputs, context.inputs)
        prediction = process.decoder(representation, context.inputs)
        residuals = (found[k] - prediction.mean) / prediction.stddev
        torch.testing.assert_close(residuals.mean(-2), torch.zeros(4, 3), atol=2e-6, rtol=0)
        own = (context.outputs - prediction.mean) / prediction.stddev
        # Each is a residual of the context, moved by the mean of all that were drawn.
        gaps = residuals[:, :, None] - own[:, None]
        shift = gaps[:, 0, :, 0]
        matches = [
            torch.isclose(gaps[task, 1:, :, 0, None], shift[task], atol=1e-4).any(1).all(0).any()
            for task in range(4)
        ]
        assert all(matches)
    assert not found.requires_grad


def test_loss_written_out(float64):
    process, batch = make("BNP"), tasks()
    points = batch.points
    found = process.loss(batch, 3, generator=torch.Generator().manual_seed(0))
    outputs = process._draw(batch.context, 3, torch.Generator().manual_seed(0))
    base = process.encoder(*batch.context[:2], points.inputs)
    alone = process.decoder(base, points.inputs).log_prob(points.outputs).sum(-1)
    likelihoods = []
    for k in range(3):
        addition = process.encoder(batch.context_inputs, outputs[k], points.inputs)
        prediction = process.decoder(base, points.inputs, addition)
        likelihoods.append(prediction.log_prob(points.outputs).sum(-1).exp())
    bootstrapped = torch.stack(likelihoods).mean(0).log()
    assert (bootstrapped - torch.stack(likelihoods).log().mean(0)).mean() > 1e-4
    torch.testing.assert_close(found, -(alone + bootstrapped).mean())
