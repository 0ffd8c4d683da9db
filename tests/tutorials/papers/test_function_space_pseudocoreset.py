"""The page on pseudocoresets in function space: its parts, and in full its claims."""

import pytest
import torch
from pyro import poutine

from pyro_ext.inference.pseudocoresets import ForwardKL

PAGE = "function-space-pseudocoreset"
pytestmark = pytest.mark.short_page


def test_potential_is_a_thousand_times_the_mean_loss(names):
    """And the prior has a variance of 0.05, at any number of pseudo images."""
    number = names["NUM_TRAINING"]
    for per_class in (1, 2):
        guide = names["learned"](None, per_class, seed=0)
        images, labels = guide.pseudodata
        assert labels.bincount().tolist() == [per_class] * 10
        trace = poutine.trace(guide.condition()).get_trace()
        logits = trace.nodes["logits"]["value"]
        loss = torch.nn.functional.cross_entropy(logits, labels)
        trace.compute_log_prob()
        torch.testing.assert_close(trace.nodes["label"]["log_prob_sum"], -number * loss)
        weight = trace.nodes["0.weight"]
        assert float(weight["fn"].base_dist.variance.max()) == pytest.approx(0.05)


def test_training_sees_no_test_images(names):
    rows = torch.cat([names["whole"][0], names["test"][0]])
    assert len(rows.unique(dim=0)) == len(rows) == names["NUM_TRAINING"] + names["NUM_TEST"]


def test_two_architectures_are_two_terms(names):
    perceptron, deep = names["perceptron"], names["deep"]
    buffers = {perceptron: names["buffers"][0], deep: names["experts"](deep, 0)}
    divergence = names["of_functions"](buffers)
    assert isinstance(divergence, ForwardKL)
    assert [term.model for term in divergence.surrogate.terms] == [perceptron, deep]
    assert names["of_functions"]({perceptron: names["buffers"][0]}).surrogate.num_particles == 10


def test_corruptions(names):
    dark, corrupted = names["DARK"], names["corrupted"]
    image = torch.full((1, 8, 8), dark)
    image[0, 4, 4] = 1.0
    flat = image.flatten(1)
    for severity, position in ((1, (4, 5)), (2, (5, 5)), (3, (5, 6))):
        moved = corrupted(flat, "shift", severity).reshape(8, 8)
        assert float(moved[position]) == 1.0 and int((moved != dark).sum()) == 1
        smooth = corrupted(flat, "blur", severity)
        torch.testing.assert_close(smooth.sum(), flat.sum())
        blank = corrupted(torch.full((1, 64), dark), "blur", severity)
        torch.testing.assert_close(blank.max(), torch.tensor(dark))
        noise = corrupted(torch.zeros(500, 64), "noise", severity)
        assert float(noise.std()) == pytest.approx(0.3 * severity, rel=0.02)
    once = corrupted(flat, "blur", 1).reshape(8, 8) - dark
    torch.testing.assert_close(once[4, 4], 0.25 * (1.0 - torch.tensor(dark)))
    torch.testing.assert_close(once[3, 3], 0.0625 * (1.0 - torch.tensor(dark)))


def test_gain_is_what_functions_save(names):
    losses = {name: names["results"][name, 1, 0].nll for name in ("weights", "functions")}
    assert names["gains"][1][0] == pytest.approx(losses["weights"] - losses["functions"])
    fraction = names["ratios"][1, 0]
    assert fraction == pytest.approx(losses["functions"] / names["results"]["random", 1, 0].nll)


@pytest.mark.page
@pytest.mark.statistical
def test_full_run(full_run):
    """All claims but the last hold, and that one says why not.

    The draws are the same with each run, up to rounding, which grows on the way. The first claim is
    near its bound, 1.6 standard errors of the mean over three seeds, and may fail elsewhere. The
    gain with five images per class, the fraction of the loss of random subsets and the difference
    of architectures are three and more standard errors from theirs: less than one set of three
    seeds in a hundred would fail.
    """
    near, *others, corrupted = full_run.report.claims
    for claim in others:
        assert claim.holds, claim
    assert near.measured > 0.0
    assert not corrupted.holds and corrupted.reason and full_run.returncode == 1
