"""Attacks: where the strongest change is known, and that what they find is allowed."""

import pytest
import torch
from torch import Tensor, nn

from pyro_ext.inference.attacks import bpda_eot, joint_score_attack, pgd

LABELS = torch.tensor([0, 2, 1, 0])


def linear(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


def two_classes() -> tuple[nn.Sequential, Tensor]:
    """A classifier of which the gradient of the loss always has one direction."""
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    return classifier, (classifier[1].weight[1] - classifier[1].weight[0]).detach()


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return 0.3 + 0.4 * torch.rand(4, 1, 3, 4)


def test_pgd_finds_the_corner_of_the_cube(x):
    """For two classes and a linear classifier it is the sign of the difference of weights."""
    classifier, difference = two_classes()
    labels = torch.tensor([0, 1, 0, 1])
    sign = torch.where(labels == 0, 1.0, -1.0)[:, None]
    found = pgd(classifier, x, labels, eps=0.1, num_steps=12)
    torch.testing.assert_close((found - x).flatten(1), 0.1 * sign * difference.sign())
    found = pgd(classifier, x, labels, eps=0.2, norm="l2", num_steps=60, step=0.05)
    wanted = 0.2 * sign * difference / difference.norm()
    torch.testing.assert_close((found - x).flatten(1), wanted, rtol=0, atol=2e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_is_found_is_allowed_and_does_harm(x, norm):
    classifier, x = linear(), torch.rand_like(x)
    kept, state = x.clone(), torch.get_rng_state()
    noise = lambda x: (x + 0.05 * torch.randn_like(x)).clamp(0.0, 1.0)  # noqa: E731
    found = {
        "pgd": pgd(classifier, x, LABELS, eps=0.2, norm=norm, seed=1),
        "bpda": bpda_eot(classifier, noise, x, LABELS, eps=0.2, norm=norm, num_draws=3, seed=1),
        "joint": joint_score_attack(
            classifier, noise, x, LABELS, eps=0.2, norm=norm, num_draws=3, seed=1
        ),
    }
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(x, kept)
    before = nn.functional.cross_entropy(classifier(x), LABELS)
    for attacked in found.values():
        change = (attacked - x).flatten(1)
        length = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
        assert length.max() < 0.2 + 1e-6 and length.min() > 0.1
        assert attacked.min() >= 0.0 and attacked.max() <= 1.0
        assert nn.functional.cross_entropy(classifier(attacked), LABELS) > before
    again = bpda_eot(classifier, noise, x, LABELS, eps=0.2, norm=norm, num_draws=3, seed=1)
    assert torch.equal(found["bpda"], again)
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_bpda_without_a_purifier_is_pgd(x):
    classifier = linear()
    options = {"eps": 0.1, "step": 0.02, "num_steps": 7}
    plain = pgd(classifier, x, LABELS, random_start=False, **options)
    through = bpda_eot(classifier, lambda x: x, x, LABELS, num_draws=3, **options)
    torch.testing.assert_close(plain, through)


def test_bpda_sees_the_gradient_at_purified_images(x):
    """The purifier's own gradient is not used, and its draws are new at each step."""
    seen = []

    def flipped(x: Tensor) -> Tensor:
        seen.append(len(x))
        return 1.0 - x

    classifier, difference = two_classes()
    labels = torch.zeros(4, dtype=torch.int64)
    found = bpda_eot(classifier, flipped, x, labels, eps=0.1, step=0.1, num_steps=2, num_draws=5)
    torch.testing.assert_close((found - x).flatten(1), 0.1 * difference.sign().expand(4, 12))
    assert seen == [20, 20]
    aware = pgd(lambda x: classifier(flipped(x)), x, labels, eps=0.1, num_steps=9)
    torch.testing.assert_close((aware - x).flatten(1), -0.1 * difference.sign().expand(4, 12))


def test_half_of_the_joint_attack_goes_with_the_purifier(x):
    """Where both agree by a whole step, where they do not by none."""
    classifier, difference = two_classes()
    labels = torch.zeros(4, dtype=torch.int64)
    found = joint_score_attack(
        classifier, lambda x: x + 0.01, x, labels, eps=0.5, step=0.1, num_steps=1
    )
    wanted = 0.1 * (difference > 0).float()
    torch.testing.assert_close((found - x).flatten(1), wanted.expand(4, 12))


def test_progress_is_shown_on_demand(x, capfd):
    pgd(linear(), x, LABELS, num_steps=3, progress=False)
    assert not capfd.readouterr().err
    pgd(linear(), x, LABELS, num_steps=3)
    assert "Attack" in capfd.readouterr().err


def test_no_steps_leave_the_image(x):
    assert torch.equal(pgd(linear(), x, LABELS, num_steps=0, random_start=False), x)
    start = pgd(linear(), x, LABELS, num_steps=0, eps=0.1, norm="l2")
    assert 0.0 < (start - x).flatten(1).norm(dim=1).max() < 0.1 + 1e-6


def test_errors_name_the_argument(x):
    classifier = linear()
    with pytest.raises(ValueError, match="x must be images .* from 0 to 1"):
        pgd(classifier, x - 1.0, LABELS)
    with pytest.raises(ValueError, match="labels must be 4 int64 classes"):
        pgd(classifier, x, LABELS[:2])
    with pytest.raises(ValueError, match=r"classifier must return logits \(4, num_classes\)"):
        pgd(classifier, x, LABELS + 1)
    with pytest.raises(ValueError, match="the gradient of classifier must be finite, got nan"):
        pgd(lambda x: classifier(x) * torch.nan, x, LABELS)
    with pytest.raises(ValueError, match="purifier must keep the shape of images"):
        bpda_eot(classifier, lambda x: x[:1], x, LABELS)
