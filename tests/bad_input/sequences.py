"""Valid calls of sequential Monte Carlo and its losses, for :mod:`walk` to spoil."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch

from pyro_ext.inference.smc import (
    CTLLoss,
    PolicyLoss,
    SelfDistilledTwistedSMC,
    TabularTwist,
    TemperedSMC,
    TwistedSMC,
    exact_markov_twist,
)
from tests.bad_input.walk import Call, call, of


class RandomWalk:
    def init(self, state):
        state["x"] = pyro.sample("x", dist.Normal(0.0, 1.0))

    step = init


class Coins(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(2))

    def forward(self, prefix):
        return self.logits.log_softmax(-1).expand(len(prefix), 2)


def number_of_heads(sequences):
    return sequences.sum(-1).float()


def table_twist():
    return TabularTwist(3, 2)


def walk(y):
    x = torch.tensor(0.0)
    for t in pyro.markov(range(len(y))):
        x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
        pyro.sample(f"y_{t}", dist.Normal(x, 1.0), obs=y[t])


def location(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def smc() -> dict[str, Call]:
    coins, heads = Coins(), torch.ones(2, 3, dtype=torch.int64)
    sampler = TwistedSMC(coins, table_twist(), number_of_heads, 4, 3)
    prompted = TwistedSMC(coins, TabularTwist(3, 2, num_prompt=1), number_of_heads, 4, 3)
    prompt = torch.tensor([1])
    small: dict[str, Any] = dict(num_twist_steps=1, num_distillation_steps=1)
    distilled = SelfDistilledTwistedSMC(sampler, **small)
    distilled.run(1, progress=False)
    markov: dict[str, Any] = dict(
        init=torch.tensor([0.5, 0.5]),
        trans=torch.full((2, 2), 0.5),
        dfa=torch.tensor([[0, 1], [1, 1]]),
        log_potential=torch.tensor([0.0, 1.0]),
        length=3,
    )
    exact = exact_markov_twist(**markov)
    return {
        "TemperedSMC": call(model=location),
        "TemperedSMC.run": of(
            TemperedSMC(location, 10, seed=0, progress=False), {"y": torch.zeros(3)}
        ),
        "TwistedSMC": call(
            base=coins, twist=table_twist(), log_potential=number_of_heads, length=3
        ),
        "TwistedSMC.run": of(prompted, prompt=prompt, clamp=heads[0], num_runs=2),
        "TwistedSMC.propose": of(prompted, num_samples=2, prompt=prompt),
        "TwistedSMC.proposal_log_prob": of(prompted, sequences=heads, prompt=prompt),
        "TwistedSMC.target_log_prob": of(prompted, sequences=heads, prompt=prompt),
        "TwistedSMC.bidirectional_bounds": of(prompted, sequences=heads, prompt=prompt),
        "TwistedSMC.fit": of(
            prompted,
            loss=CTLLoss(),
            num_steps=1,
            prompt=prompt,
            optimizer=torch.optim.Adam,
            progress=False,
        ),
        "SMCResult.sample": of(sampler.run(seed=0)),
        "SelfDistilledTwistedSMC": call(
            sampler=sampler,
            loss=CTLLoss(),
            twist_optimizer=torch.optim.Adam,
            base_optimizer=torch.optim.Adam,
            prompt=prompt,
            **small,
        ),
        "SelfDistilledTwistedSMC.run": of(distilled, num_generations=1, progress=False),
        "SelfDistilledTwistedSMC.step": of(distilled, progress=False),
        "CTLLoss": call(num_particles=4),
        "CTLLoss.differentiable_loss": of(CTLLoss(), smc=sampler),
        "SoftQLoss": call(num_particles=4),
        "SIXOLoss": call(num_particles=4),
        "FUDGELoss": call(num_particles=4),
        "DPGLoss": call(num_particles=4),
        "MarkovSMC": call(model=walk),
        "TwistedSMCFilter": call(model=RandomWalk()),
        "PolicyLoss": call(policy=coins, num_particles=4),
        "PolicyLoss.differentiable_loss": of(PolicyLoss(coins), smc=sampler),
        "TabularTwist": call(length=3, vocabulary_size=2),
        "exact_markov_twist": call(**markov),
        "MarkovTwist.sample": of(exact, num_samples=2),
        "effective_sample_size": call(log_weights=torch.zeros(3)),
        "sequence_log_prob": call(model=coins, tokens=heads),
    }


def language_models() -> dict[str, Call]:
    from transformers import GPT2Config, GPT2LMHeadModel

    tokens = {"vocab_size": 5, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(n_embd=4, n_layer=1, n_head=1, **tokens))
    return {"CausalLM": call(model=model, start_token=0)}


TABLES = {
    "pyro_ext.inference.smc": smc,
    "pyro_ext.inference.smc (language models)": language_models,
}
