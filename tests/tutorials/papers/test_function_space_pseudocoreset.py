"""The page on pseudocoresets in function space: its parts, and in full its claims."""

import pyro
import pytest
import torch
from pyro import poutine

from pyro_ext.inference.pseudocoresets import ForwardKL
from tests.pages import check_short_report

PAGE = "function-space-pseudocoreset"
pytestmark = pytest.mark.short_page


def test_short_run_saves_a_report_and_figures(short_run):
    _, folder = short_run
    check_short_report(folder, PAGE, 6, {"images", "losses"})


def test_potential_is_a_thousand_times_the_mean_loss(short_run):
    """And the prior has a variance of 0.05, at any number of pseudo images."""
    names, _ = short_run
    number = names["NUM_TRAINING"]
    for per_class in (1, 2):
        guide = names["subset"](names["whole"], per_class, seed=0)
        images, labels = guide.pseudodata
        assert labels.bincount().tolist() == [per_class] * 10
        trace = poutine.trace(guide.condition()).get_trace()
        logits = trace.nodes["logits"]["value"]
        loss = torch.nn.functional.cross_entropy(logits, labels)
        trace.compute_log_prob()
        torch.testing.assert_close(trace.nodes["label"]["log_prob_sum"], -number * loss)
        weight = trace.nodes["0.weight"]
        assert float(weight["fn"].base_dist.variance.max()) == pytest.approx(0.05)


def test_training_sees_no_validation_and_no_test_images(short_run):
    names, _ = short_run
    parts = [names["inner"][0], names["validation"][0], names["test"][0]]
    rows = torch.cat(parts)
    assert len(rows) == names["NUM_TRAINING"] + names["NUM_TEST"]
    assert len(rows.unique(dim=0)) == len(rows)
    torch.testing.assert_close(torch.cat(parts[:2]), names["whole"][0])


def test_two_architectures_are_two_terms(short_run):
    names, _ = short_run
    perceptron, deep, whole = names["perceptron"], names["deep"], names["whole"]
    buffers = {perceptron: names["buffers"][0], deep: names["experts"](deep, whole, 0)}
    divergence = names["of_functions"](buffers)
    assert isinstance(divergence, ForwardKL)
    assert [term.model for term in divergence.surrogate.terms] == [perceptron, deep]
    assert names["of_functions"]({perceptron: names["buffers"][0]}).surrogate.num_particles == 10


def test_another_order_of_hidden_units_is_the_same_function(short_run):
    names, _ = short_run
    buffer, perceptron = names["buffers"][0], names["perceptron"]
    other = names["with_other_order"](buffer, 3)
    assert torch.equal(other.trajectories[:, 0], buffer.trajectories[:, 0])
    layout = names["subset"](names["whole"], 1, 0).posterior.layout
    logits = []
    for experts in (buffer, other):
        values = layout.unflatten(experts.trajectories[0, -1])
        conditioned = pyro.condition(perceptron, values)
        logits.append(poutine.trace(conditioned).get_trace(names["test"][0]).nodes["logits"])
    torch.testing.assert_close(logits[0]["value"], logits[1]["value"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(other.trajectories[:, -1], buffer.trajectories[:, -1])
    for functions, weights in names["changes"].values():
        assert functions < 1e-3 < weights


def test_corruptions(short_run):
    names, _ = short_run
    dark = names["DARK"]
    image = torch.full((1, 8, 8), dark)
    image[0, 4, 4] = 1.0
    flat = image.flatten(1)
    for severity, position in ((1, (4, 5)), (2, (5, 5)), (3, (5, 6))):
        moved = names["shifted"](flat, severity).reshape(8, 8)
        assert float(moved[position]) == 1.0 and int((moved != dark).sum()) == 1
        smooth = names["blurred"](flat, severity)
        torch.testing.assert_close(smooth.sum(), flat.sum())
        torch.testing.assert_close(
            names["blurred"](torch.full((1, 64), dark), severity).max(), torch.tensor(dark)
        )
        noise = names["with_noise"](torch.zeros(500, 64), severity)
        assert float(noise.std()) == pytest.approx(0.3 * severity, rel=0.02)
    once = names["blurred"](flat, 1).reshape(8, 8) - dark
    torch.testing.assert_close(once[4, 4], 0.25 * (1.0 - torch.tensor(dark)))
    torch.testing.assert_close(once[3, 3], 0.0625 * (1.0 - torch.tensor(dark)))


def test_gain_is_what_functions_save(short_run):
    names, _ = short_run
    losses = {name: names["results"][name, 1, 0].nll for name in ("weights", "functions")}
    assert names["gain"](1)[0] == pytest.approx(losses["weights"] - losses["functions"])
    fraction = names["largest_fraction"]()[0]
    assert fraction == pytest.approx(losses["functions"] / names["results"]["random", 1, 0].nll)


def test_gains_on_corrupted_images_are_means(short_run):
    names, _ = short_run
    corrupted, (first, *_) = names["corrupted"], names["SEEDS"]
    expected = [
        corrupted["weights", "blur", severity][first]
        - corrupted["functions", "blur", severity][first]
        for severity in (1, 2, 3)
    ]
    assert names["by_kind"]["blur"][first] == pytest.approx(sum(expected) / 3)


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
