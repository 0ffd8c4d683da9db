"""A small Bayesian network on digits, which a page samples by several means."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

WIDTHS = (64, 32, 32, 10)
PRIOR_VARIANCE = 0.05


def logits(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """Outputs of the network; weights may have leading dimensions of draws."""
    hidden = inputs
    for layer in range(len(WIDTHS) - 1):
        hidden = hidden @ weights[f"weight{layer}"] + weights[f"bias{layer}"].unsqueeze(-2)
        if layer < len(WIDTHS) - 2:
            hidden = torch.nn.functional.silu(hidden)
    return hidden


def model(inputs: Tensor, labels: Tensor, batch_size: int = 64) -> None:
    """Bayesian network for classification."""
    scale = math.sqrt(PRIOR_VARIANCE)
    weights = {}
    for layer, shape in enumerate(zip(WIDTHS[:-1], WIDTHS[1:], strict=True)):
        for name, event in ((f"weight{layer}", shape), (f"bias{layer}", shape[1:])):
            prior = dist.Normal(inputs.new_zeros(event), scale).to_event(len(event))
            weights[name] = pyro.sample(name, prior)
    with pyro.plate("images", len(inputs), subsample_size=batch_size) as batch:
        outputs = logits(weights, inputs[batch])
        pyro.sample("label", dist.Categorical(logits=outputs), obs=labels[batch])
