"""What full runs of pages found: which claims failed, with a reason, and which may.

Draws, and with them claims, are the same with each run on one processor. Where a claim is so near
to its bound that rounding on another may turn it, it may fail. Times that a busy machine may change
are far from their bounds. A page that says more than which claims hold has a test of its own.
"""

import pytest

from pyro_ext.reproduction.pages import Outcome

# Numbers of claims, from 0: those that fail, and those that may.
FAILED: dict[str, tuple[set[int], set[int]]] = {
    "adversarial-purification": (set(), set()),
    # Of the loss less than a tenth of the bound is left.
    "asymmetric-scaling": ({7}, set()),
    # The padded CNN is not far behind, and inflated kernels are better on advection.
    "axial-networks": ({2, 3, 7}, set()),
    # The best rival in time. A difference of none on digits is beyond three standard errors for one
    # of a thousand seeds.
    "crm-series": ({4}, set()),
    "dac": (set(), set()),
    # A student is as good as two bridges on one of the seeds.
    "dbn": ({5}, set()),
    # Parameters are judged at a level of 1e-3: one set of three seeds in a thousand would fail.
    # Chains of one fit may be too far apart.
    "double-power-law": (set(), {0}),
    # FedAvg wins without noise; with noise the gain over FFA-LoRA is as large as its bound.
    "fedsvd": ({3}, {0}),
    "functional-adjoint-sampler": (set(), set()),
    # Safe guidance at its strongest takes more than the token says.
    "hfi": ({8}, set()),
    "l2e": (set(), set()),
    "latent-be": (set(), set()),
    # A new classifier is calibrated before it is distilled.
    "long-tailed-srepr": ({6}, set()),
    # With ESD fewer sevens come back than the bound asks for; what comes back at all with ESD, and
    # the cosine, are near their bounds.
    "modular-lora": ({5}, {1, 7}),
    # Exact draws have a distance to the limit beyond its bound in one page of a hundred; the Cauchy
    # distribution fails for 3 sets of three seeds in 100 by its bound. Errors of pruning have a
    # bound of three standard errors and more. The others are far from their bounds.
    "mogp": (set(), set()),
    "nptl": (set(), set()),
    "prior-augmented-data": (set(), set()),
    "pseudocoreset-divergences": (set(), set()),
    # The counts of modes, the ambiguities and the losses at equal step size are far from their
    # bounds. The gain in loss, 0.026, and the difference of single draws, 0.017, have standard
    # errors of about 0.005 and 0.007, and are four and more than three of these away: less than one
    # set in a hundred would fail.
    "px-sgmcmc": (set(), set()),
    "rc-mae": (set(), set()),
    "sdd": (set(), set()),
    "set-transformer": (set(), set()),
    # Pooling is stronger, and larger sets are nearer, than where the bounds were set.
    "setvae": ({1, 2}, set()),
    # Where one instance decides, gated attention orders bags as well; and attention of slots does
    # not concentrate at this scale. A transformer with subsampling is as good on one of the seeds.
    "slot-mixup": ({5, 6}, {4}),
    "soft-equivariance": (set(), set()),
    # The derivative alone finds as good fields as the flow.
    "symmetry-generators": ({3}, set()),
    # Chains out of one cluster end by the clock, far above their bounds. A difference of three
    # standard errors or more is there in about 3 of 1,000 seeds, so in one of a hundred sets.
    "tgmcmc": (set(), set()),
    # A network that is tuned without twists is better at this scale.
    "twisted-smc": ({2}, set()),
}


@pytest.mark.page
@pytest.mark.statistical
@pytest.mark.parametrize("full_run", FAILED, indirect=True)
def test_full_runs_meet_all_claims_but_those_that_have_a_reason(full_run: Outcome) -> None:
    failed, may_fail = FAILED[full_run.page.slug]
    claims = full_run.report.claims
    found = {number for number, claim in enumerate(claims) if not claim.holds}
    assert failed <= found <= failed | may_fail, full_run.verdict
    assert all(claims[number].reason for number in found)
    assert full_run.returncode == bool(found)
