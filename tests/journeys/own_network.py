"""A convolutional network with layer norm on few digits: one training, SWAG, an ensemble, SGHMC.

Nothing is exact here; each way must be worth what it costs on held-out data.
"""

from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pyro_ext.datasets import load_digits
from pyro_ext.diagnostics import metrics
from pyro_ext.inference import MCMC, SGHMC
from pyro_ext.inference.averaging import SWAG
from pyro_ext.inference.training import ShuffledBatches, Trainer
from pyro_ext.nn import BayesianClassifier, BayesianModule, init_to_module

digits = load_digits(num_train=400, num_test=1000)
x, y = digits.train_inputs.view(-1, 1, 8, 8), digits.train_targets
x_test, y_test = digits.test_inputs.view(-1, 1, 8, 8), digits.test_targets
batches = ShuffledBatches(x, y, batch_size=50)


def make(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.LayerNorm(192),
        nn.Linear(192, 10),
    )


def train(seed, collector=None):
    network = make(seed)
    stateful = [] if collector is None else [collector]
    optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    trainer = Trainer(network, optimizer, stateful=stateful, seed=seed)

    def loss(x, y):
        if collector is not None and trainer.num_steps >= 200 and trainer.num_steps % 10 == 0:
            collector.collect(network)
        return cross_entropy(network(x), y)

    trainer.run(loss, 400, batches, progress=False)
    return network.eval()


def nll(probabilities):
    return float(metrics.nll(probabilities, y_test))


swag = SWAG(max_rank=20)
networks = [train(0, swag), *(train(seed) for seed in range(1, 5))]
generator = torch.Generator().manual_seed(0)
with torch.no_grad():
    each = torch.stack([network(x_test).softmax(-1) for network in networks])
    weights = swag.sample(sample_shape=(20,), generator=generator)
    drawn = [swag.module(networks[0], one)(x_test).softmax(-1) for one in weights]
    scores = {
        "one network": nll(each[0]),
        "SWAG": nll(torch.stack(drawn).mean(0)),
        "ensemble of 5": nll(each.mean(0)),
    }

classifier = BayesianClassifier(BayesianModule(make(0)), batch_size=50)
kernel = SGHMC(classifier, init_strategy=init_to_module(module=make(0)))
mcmc = MCMC(kernel, num_samples=50, warmup_steps=2000, thinning=50, num_chains=4, seed=0).run(x, y)
draws = mcmc.get_samples(group_by_chain=True)
scores["SGHMC"] = nll(classifier.probabilities(draws, x_test).mean((0, 1)))
print(scores)
assert scores["one network"] < 0.25
assert scores["SWAG"] < 1.05 * scores["one network"]
assert scores["ensemble of 5"] < scores["one network"]
assert scores["SGHMC"] < 0.5  # wider than an ensemble, and far from a uniform guess, 2.3
