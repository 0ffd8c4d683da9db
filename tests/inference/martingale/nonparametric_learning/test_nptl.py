"""Nonparametric transfer learning: its targets, its members, its choices, and its priors."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from pyro_ext.inference import NPTL, BatchOptimizer
from pyro_ext.inference.averaging import (
    L2SP,
    SWAG,
    FineTunedEnsemble,
    SWAGPrior,
    soft_cross_entropy,
)
from pyro_ext.inference.martingale import DirichletWeights, linear_probe

pytestmark = pytest.mark.usefixtures("float64")

OPTIMIZER = BatchOptimizer(partial(torch.optim.SGD, lr=0.2, momentum=0.9), 30)


@pytest.fixture
def parts(float64: None) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh()), nn.Linear(6, 4)


@pytest.fixture
def data(float64: None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(24) % 4
    return torch.randn(24, 3, generator=generator) + labels[:, None], labels


def nptl(parts: Any, num_samples: int = 4, **options: Any) -> NPTL:
    options = {"concentration": 6.0, "optimizer": OPTIMIZER, "seed": 0, **options}
    return NPTL(*parts, num_samples, **options)


def train_by_hand(parts: Any, member: NPTL, inputs: Tensor, targets: Tensor, start: Any) -> Tensor:
    """The last loss of a member that is trained alone by PyTorch's own optimizer."""
    params = {name: value.clone().requires_grad_() for name, value in start.items()}
    descent = torch.optim.SGD(params.values(), lr=0.2, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, 30)
    for _ in range(30):
        descent.zero_grad()
        logits = torch.func.functional_call(member.network, params, (inputs,))
        penalty = 0.5 * member.weight_decay * sum(p.square().sum() for p in params.values())
        (soft_cross_entropy(logits, targets).sum() + penalty).backward()
        descent.step()
        schedule.step()
    return {name: value.detach() for name, value in params.items()}


def test_a_member_is_what_it_would_be_alone(parts: Any, data: Any) -> None:
    """Trained by hand on its weights, from the pretrained backbone and its head."""
    inputs, labels = data
    posterior = nptl(parts, weight_decay=0.01).run(inputs, labels)
    samples = posterior.get_samples()
    weights = DirichletWeights(24, 24, 6.0).draw(range(4), seed=0)
    hard = one_hot(labels, 4).to(inputs)
    soft = posterior.soft_labels
    # No step: parameters are where they start.
    still = nptl(parts, optimizer=BatchOptimizer(partial(torch.optim.SGD, lr=0.0), 1))
    starts = still.run(inputs, labels).get_samples()
    for name, value in parts[0].named_parameters():
        torch.testing.assert_close(starts[f"backbone.{name}"][2], value.detach())
    assert 0.01 < float(starts["head.weight"].std()) < 0.1
    assert not torch.equal(starts["head.weight"][0], starts["head.weight"][1])
    for member in (0, 3):
        targets = weights[member, :24, None] * hard + weights[member, 24:, None] * soft
        start = {name: value[member] for name, value in starts.items()}
        alone = train_by_hand(parts, posterior, inputs, targets, start)
        for name, value in alone.items():
            torch.testing.assert_close(samples[name][member], value, atol=1e-8, rtol=0)


def test_the_probe_is_a_regularized_minimum(parts: Any, data: Any) -> None:
    inputs, labels = data
    features = parts[0](inputs).detach()
    hard = one_hot(labels, 4).to(inputs)
    soft = linear_probe(features, hard, parts[1], penalty=0.05)
    torch.testing.assert_close(soft.sum(-1), torch.ones(24))
    # At the minimum the gradient in the bias, which the penalty holds too, is that of the penalty.
    residual = (soft - hard).mean(0)
    weight = (soft - hard).mT @ features / 24 / -0.05
    bias = residual / -0.05
    torch.testing.assert_close((features @ weight.mT + bias).softmax(-1), soft, atol=1e-4, rtol=0)


def test_the_concentration_is_that_of_the_least_validation_loss(parts: Any, data: Any) -> None:
    inputs, labels = data
    validation = inputs[::3] + 0.1, labels[::3]
    grid = [0.0, 5.0, 500.0]
    chosen = nptl(parts, concentration=grid, num_standard_errors=0.0)
    chosen.run(inputs, labels, validation)
    losses = chosen.diagnostics()["validation_loss"]
    alone = {}
    for value in grid:
        single = nptl(parts, concentration=value).run(inputs, labels)
        average = single.probabilities(validation[0]).mean(0)
        alone[value] = float(-average.gather(1, validation[1][:, None]).log().mean())
    assert losses == pytest.approx(alone, rel=1e-6)
    best = min(alone, key=alone.__getitem__)
    assert chosen.diagnostics()["concentration"] == best
    expected = nptl(parts, concentration=best).run(inputs, labels).get_samples()
    for name, value in chosen.get_samples().items():
        torch.testing.assert_close(value, expected[name], atol=1e-8, rtol=0)


def test_a_smaller_concentration_is_taken_where_its_loss_is_as_good(parts: Any) -> None:
    """By the standard error of the mean difference of losses, whatever the order of the grid."""
    grid = [30.0, 10.0, 3.0, 1.0]
    differences = torch.tensor([1.0, -0.4, 0.3, -0.1])  # mean 0.2, standard error 0.302765
    best = torch.tensor([2.0, 1.0, 4.0, 3.0])
    losses = torch.stack([best + 3.0, best, best + differences, best + 2.0 * differences + 0.3])

    def chosen(num_standard_errors: float) -> float:
        posterior = nptl(parts, concentration=grid, num_standard_errors=num_standard_errors)
        return grid[posterior._choose(grid, losses)]

    assert chosen(0.0) == 10.0 and chosen(0.66) == 10.0
    assert chosen(0.661) == 3.0 and chosen(1.155) == 3.0
    assert chosen(1.157) == 1.0  # mean 0.7, standard error 0.605530


def test_a_concentration_without_finite_losses_is_not_taken(parts: Any) -> None:
    losses = torch.tensor([[torch.nan, 1.0], [2.0, 1.0]])
    assert nptl(parts)._choose([1.0, 2.0], losses) == 1


def test_the_probe_is_that_of_the_least_validation_loss(parts: Any, data: Any) -> None:
    inputs, labels = data
    validation = inputs[::3] + 0.5, labels[::3]
    penalties = [1e-4, 1e-2, 1.0]
    chosen = nptl(parts, probe_penalty=penalties).run(inputs, labels, validation)
    features, unseen = (parts[0](rows).detach() for rows in (inputs, validation[0]))
    hard = one_hot(labels, 4).to(inputs)
    losses = {}
    for penalty in penalties:
        found = linear_probe(features, hard, parts[1], penalty, unseen)
        losses[penalty] = float(-found.gather(1, validation[1][:, None]).log().mean())
    best = min(losses, key=losses.__getitem__)
    assert chosen.diagnostics()["probe_penalty"] == best
    expected = linear_probe(features, hard, parts[1], best)
    torch.testing.assert_close(chosen.soft_labels, expected)


def test_validation_points_are_no_atoms(parts: Any, data: Any) -> None:
    posterior = nptl(parts, concentration=None, validation_fraction=0.25).run(*data)
    assert posterior.soft_labels.shape == (18, 4)
    assert len(posterior.diagnostics()["validation_loss"]) == 5
    assert nptl(parts).run(*data).soft_labels.shape == (24, 4)


def test_soup(parts: Any, data: Any) -> None:
    """No worse than its best member, which a soup of one is; a copy that stands alone."""
    inputs, labels = data
    posterior = nptl(parts, 6).run(inputs, labels)
    validation = inputs + 0.3, labels
    soup = posterior.soup(*validation)

    def loss(logits: Tensor) -> float:
        return float(cross_entropy(logits, labels))

    members = [loss(logits) for logits in posterior.log_probabilities(validation[0])]
    assert soup.members[0] == min(range(6), key=members.__getitem__)
    assert soup.loss <= min(members) + 1e-12
    with torch.no_grad():
        assert loss(soup.network(validation[0])) == pytest.approx(soup.loss)
    mean = posterior.get_samples()["head.bias"][soup.members].mean(0)
    torch.testing.assert_close(soup.network.head.bias.detach(), mean)
    single = nptl(parts, 1).run(inputs, labels)
    (logits,) = single.log_probabilities(inputs)
    with torch.no_grad():
        torch.testing.assert_close(single.soup(*validation).network(inputs).log_softmax(-1), logits)


def test_an_ensemble_fits_the_mean_loss(parts: Any, data: Any) -> None:
    inputs, labels = data
    ensemble = FineTunedEnsemble(*parts, 3, optimizer=OPTIMIZER, seed=0).run(inputs, labels)
    none = BatchOptimizer(partial(torch.optim.SGD, lr=0.0), 1)
    starts = FineTunedEnsemble(*parts, 3, optimizer=none, seed=0).run(inputs, labels).get_samples()
    targets = one_hot(labels, 4).to(inputs) / 24
    start = {name: value[1] for name, value in starts.items()}
    alone = train_by_hand(parts, ensemble, inputs, targets, start)  # type: ignore[arg-type]
    for name, value in alone.items():
        torch.testing.assert_close(ensemble.get_samples()[name][1], value, atol=1e-8, rtol=0)


def test_minibatches_come_close(parts: Any, data: Any) -> None:
    search = BatchOptimizer(partial(torch.optim.SGD, lr=0.05, momentum=0.9), 600)
    whole = nptl(parts, optimizer=search).run(*data).probabilities(data[0])
    part = nptl(parts, optimizer=search, subsample_size=8).run(*data).probabilities(data[0])
    difference = (whole - part).abs()
    assert 0.0 < float(difference.mean()) < 0.05


def test_the_same_seed_gives_the_same_members(parts: Any, data: Any) -> None:
    first = nptl(parts).run(*data).get_samples()["head.weight"]
    assert torch.equal(nptl(parts).run(*data).get_samples()["head.weight"], first)
    more = nptl(parts, 6).run(*data).get_samples()["head.weight"]
    torch.testing.assert_close(more[:4], first, atol=1e-10, rtol=0)
    assert not torch.equal(nptl(parts, seed=1).run(*data).get_samples()["head.weight"], first)


def test_members_that_leave_the_finite_numbers_are_told(parts: Any, data: Any) -> None:
    search = BatchOptimizer(partial(torch.optim.SGD, lr=1e200), 5, scheduler=None)
    with pytest.raises(RuntimeError, match="the network is not finite in any of 4 draws"):
        nptl(parts, optimizer=search).run(*data)


def test_the_l2sp_prior(parts: Any) -> None:
    prior = L2SP(parts[0], scale=0.5, head_scale=2.0)
    params = {f"backbone.{name}": value + 1.0 for name, value in parts[0].named_parameters()}
    params["head.bias"] = torch.full((4,), 3.0)
    count = sum(value.numel() for value in parts[0].parameters())
    expected = 0.5 * count / 0.25 + 0.5 * 4 * 9.0 / 4.0
    torch.testing.assert_close(prior(params).detach(), torch.tensor(expected))


def test_the_swag_prior() -> None:
    """Against the dense normal density, with deviations from the mean as it was at that time."""
    path = [{"weight": torch.randn(2, 2), "bias": torch.randn(2)} for _ in range(5)]
    prior = SWAGPrior(path, scale=3.0, head_scale=2.0)
    rows = torch.stack([torch.cat([row["weight"].reshape(-1), row["bias"]]) for row in path])
    deviations = rows - rows.cumsum(0) / torch.arange(1.0, 6.0)[:, None]
    variance = 0.5 * rows.var(0, correction=0) + 1e-3
    covariance = variance.diag() + deviations.mT @ deviations / 8.0
    distribution = torch.distributions.MultivariateNormal(rows.mean(0), 3.0 * covariance)
    values = torch.randn(6)
    params = {
        "backbone.weight": values[:4].reshape(2, 2),
        "backbone.bias": values[4:],
        "head.bias": torch.tensor([2.0, 4.0]),
    }
    torch.testing.assert_close(prior(params), -distribution.log_prob(values) + 0.5 * (1.0 + 4.0))
    swag = SWAG(max_rank=5)
    for row in path:
        swag.collect(row)
    same = SWAGPrior(swag, scale=3.0, head_scale=2.0)
    torch.testing.assert_close(same(params), prior(params))


def test_priors_of_another_network() -> None:
    """Statistics of batch normalization among the snapshots, and parameters without a prior."""
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    params = {f"backbone.{name}": value for name, value in network.named_parameters()}
    path = [{name: value.double() for name, value in network.state_dict().items()}] * 3
    with pytest.raises(ValueError, match=r"\['backbone.1.num_batches_tracked', .* are missing"):
        SWAGPrior(path)(params)
    with pytest.raises(ValueError, match=r"\['other.weight'\] are others"):
        L2SP(network, 1.0)({**params, "other.weight": torch.zeros(1)})


def test_bad_settings(subtests: pytest.Subtests, parts: Any) -> None:
    for make, error, message in [
        (lambda p: NPTL(p[0], nn.Tanh()), ValueError, "head must have parameters"),
        (lambda p: nptl(p, concentration=[]), ValueError, "a number or several"),
        (lambda p: nptl(p, concentration=[1.0, -2.0]), ValueError, r"concentration\[1\] must be"),
        (
            lambda p: SWAGPrior([{}]),
            ValueError,
            "snapshots must be a list of dicts of parameters, at least 2",
        ),
    ]:
        with subtests.test(message), pytest.raises(error, match=message):
            make(parts)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(5, dtype=torch.int64), r"labels.* must have the shape \(24,\)"),
        (torch.zeros(24), "a list of integers .*got a torch.float"),
    ],
)
def test_bad_labels(parts: Any, data: Any, labels: Tensor, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        nptl(parts).run(data[0], labels)
    with pytest.raises((TypeError, ValueError), match=message):
        nptl(parts).run(*data, validation=(data[0], labels))
