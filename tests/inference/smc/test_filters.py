"""State-space models in steps, against the forward algorithm and the Kalman filter."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.smcfilter import SMCFailed

from pyro_ext.inference import TwistedSMCFilter
from tests.inference.models import assert_mean
from tests.inference.smc.test_pyro_models import INIT, LOCS, TRANS, Y, messages

pytestmark = pytest.mark.usefixtures("float64")


class HiddenMarkov:
    """The chain of the other module, with its step in the state."""

    def init(self, state, y):
        self.t = -1
        self.move(state, torch.tensor(INIT), y)

    def step(self, state, y):
        self.move(state, torch.tensor(TRANS)[state["x"]], y)

    def move(self, state, probs, y):
        self.t += 1
        state["x"] = pyro.sample(f"x_{self.t}", dist.Categorical(probs))
        state["count"] = state.get("count", 0.0) + state["x"].double()
        pyro.sample(f"y_{self.t}", dist.Normal(torch.tensor(LOCS)[state["x"]], 1.0), obs=y)


class Guide:
    """Draws from given probabilities, which may be those of the posterior."""

    def __init__(self, logits):
        self.logits = logits

    def init(self, state, y):
        self.t = 0
        pyro.sample("x_0", dist.Categorical(logits=torch.tensor(INIT).log() + self.logits[0]))

    def step(self, state, y):
        self.t += 1
        log_trans = torch.tensor(TRANS).log()[state["x"]]
        pyro.sample(f"x_{self.t}", dist.Categorical(logits=log_trans + self.logits[self.t]))


def filtered(smc, y):
    smc.init(y[0])
    for value in y[1:]:
        smc.step(value)
    return smc


def wrong_twist(model):
    """No density of the future, and zero at the end."""
    return lambda state: 1.0 * state["x"] * (model.t < len(Y) - 1)


@pytest.mark.statistical
@pytest.mark.parametrize("ess_threshold", [0.5, 1.0])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("twisted", [False, True])
def test_evidence_and_states(ess_threshold, guided, twisted):
    """Evidence and mean count of states of 100 runs within 4.5 standard errors: rate 1e-4."""
    y = torch.tensor(Y)
    forward, backward = messages(y)
    model = HiddenMarkov()
    guide = Guide(torch.tensor([[0.5, -0.5]]).expand(5, 2)) if guided else None
    twist = wrong_twist(model) if twisted else None
    smc = TwistedSMCFilter(model, guide, 10, twist=twist, ess_threshold=ess_threshold)
    found = []
    for _ in range(100):
        filtered(smc, y)
        mean = smc.get_empirical()["count"].mean
        found.append(torch.stack([smc.log_Z.exp(), smc.log_Z.exp() * mean]))
    joint = (forward + backward).exp()
    assert_mean(torch.stack(found), torch.stack([joint[0].sum(), joint[:, 1].sum()]))


def test_best_guide_and_twist_have_no_variance():
    y = torch.tensor(Y)
    forward, backward = messages(y)
    log_like = dist.Normal(torch.tensor(LOCS), 1.0).log_prob(y[:, None])
    model = HiddenMarkov()
    smc = TwistedSMCFilter(
        model,
        Guide(log_like + backward),
        6,
        twist=lambda state: backward[model.t][state["x"]],
        ess_threshold=1.0,
    )
    filtered(smc, y)
    torch.testing.assert_close(smc.log_Z, forward[-1].logsumexp(-1), atol=1e-12, rtol=0)
    weights = smc.get_empirical()["x"].log_weights
    torch.testing.assert_close(weights, weights.mean().expand(6), atol=1e-12, rtol=0)


def test_errors():
    y = torch.tensor(Y)
    with pytest.raises(RuntimeError, match="there are no particles yet: call init first"):
        print(TwistedSMCFilter(HiddenMarkov()).log_Z)
    for values, kind, message in (
        (0.0, ValueError, "twist must return a tensor of the shape .100,., got 0"),
        (torch.full((100,), torch.nan), ValueError, "model and twist must have .* not NaN"),
        (torch.full((100,), -torch.inf), SMCFailed, "no particle has a positive density"),
    ):
        with pytest.raises(kind, match=message):
            TwistedSMCFilter(HiddenMarkov(), twist=lambda state, values=values: values).init(y[0])
