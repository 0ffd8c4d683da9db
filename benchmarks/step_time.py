"""Time of a step of a Pyro model: compiled here against eager Pyro, at 1, 16 and 64 chains.

Both sides take SGLD steps of the same Bayesian networks with minibatches of 64 digits, in turn, in
one process and on one thread. Eager Pyro is what a user writes by hand: a trace of the conditioned
model, its ``log_prob_sum``, autograd, and the update, with Pyro's validation as it is by default;
chains one after the other, since Pyro has no other way. Prints one line of JSON.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ext import datasets
from pyro_ext.inference import SGLD

STEP_SIZE = 1e-6
BATCH_SIZE = 64
ROUNDS = 5


def network(inputs: Tensor, labels: Tensor) -> None:
    """Bayesian network 64-64-10."""
    weight0 = pyro.sample("weight0", dist.Normal(torch.zeros(64, 64), 1.0).to_event(2))
    bias0 = pyro.sample("bias0", dist.Normal(torch.zeros(64), 1.0).to_event(1))
    weight1 = pyro.sample("weight1", dist.Normal(torch.zeros(64, 10), 1.0).to_event(2))
    bias1 = pyro.sample("bias1", dist.Normal(torch.zeros(10), 1.0).to_event(1))
    with pyro.plate("images", len(inputs), subsample_size=BATCH_SIZE) as batch:
        logits = torch.tanh(inputs[batch] @ weight0 + bias0) @ weight1 + bias1
        pyro.sample("label", dist.Categorical(logits=logits), obs=labels[batch])


def eager_step(args: tuple[Tensor, ...]) -> Callable[[], None]:
    """One step of one chain in eager Pyro."""
    trace = pyro.poutine.trace(network).get_trace(*args)
    params = {
        name: site["value"].clone().requires_grad_()
        for name, site in trace.iter_stochastic_nodes()
        if name != "images"
    }

    def step() -> None:
        conditioned = pyro.poutine.condition(network, data=params)
        log_joint = pyro.poutine.trace(conditioned).get_trace(*args).log_prob_sum()
        gradients = torch.autograd.grad(log_joint, list(params.values()))
        with torch.no_grad():
            for param, gradient in zip(params.values(), gradients, strict=True):
                noise = torch.randn_like(param)
                param += STEP_SIZE * gradient + (2 * STEP_SIZE) ** 0.5 * noise

    return step


def compiled_steps(args: tuple[Tensor, ...], num_chains: int) -> Callable[[int], None]:
    """Any number of steps of many chains here."""
    kernel = SGLD(network, step_size=STEP_SIZE, backend="compile")
    kernel.setup(0, *args)
    chains = [kernel.begin(range(num_chains), seed=0)]

    def steps(count: int) -> None:
        chains[0] = kernel.advance(chains[0], count)

    steps(256)
    return steps


def microseconds(run: Callable[[int], object], num_steps: int) -> float:
    """CPU time of a step."""
    start = time.process_time()
    run(num_steps)
    return (time.process_time() - start) / num_steps * 1e6


def main() -> None:
    """Measure in interleaved rounds and print."""
    torch.set_num_threads(1)
    data = datasets.load_digits()
    args = (data.train_inputs, data.train_targets)
    one = eager_step(args)
    one()
    result: dict[str, object] = {"benchmark": "step_time", "unit": "CPU us per chain and step"}
    for num_chains, num_steps in ((1, 4096), (16, 1024), (64, 256)):
        start = time.perf_counter()
        many = compiled_steps(args, num_chains)
        first_call = time.perf_counter() - start
        eager, compiled = [], []
        for _ in range(ROUNDS):
            eager.append(microseconds(lambda count: [one() for _ in range(count)], 200))
            compiled.append(microseconds(many, num_steps) / num_chains)
        ratios = [slow / fast for slow, fast in zip(eager, compiled, strict=True)]
        result[f"chains_{num_chains}"] = {
            "eager_pyro": round(statistics.median(eager), 1),
            "pyro_ext_compile": round(statistics.median(compiled), 1),
            "ratio": round(statistics.median(ratios), 1),
            "first_call_s": round(first_call, 1),
        }
    packages = ("torch", "pyro-ppl", "pyro-ext")
    result["versions"] = {name: version(name) for name in packages}
    result["versions"]["python"] = platform.python_version()  # type: ignore[index]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
