"""Valid calls of mean teachers and masked autoencoders, for :mod:`walk` to spoil."""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_ext.models.vision import MaskedAutoencoder
from pyro_ext.nn import MeanTeacher
from tests.bad_input.walk import Call, call, of

X = torch.randn(3)


def model(x: torch.Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def blocks() -> dict[str, Call]:
    return {
        "MeanTeacher": call(module=nn.Linear(2, 1), num_steps=5),
        "MeanTeacher.update": of(MeanTeacher(nn.Linear(2, 1)), step=3),
        "MeanTeacher.momentum_at": of(MeanTeacher(nn.Linear(2, 1)), step=3),
        "teacher_gradient_decomposition": call(
            gradients=torch.randn(4, 3, 2), inputs=torch.randn(4, 2), momentum=0.5, step_size=0.1
        ),
    }


def handlers() -> dict[str, Call]:
    return {"consistency": call(teacher=model, sites=["x"])}


def autoencoders() -> dict[str, Call]:
    network = MaskedAutoencoder((1, 4, 4), 2, width=4, depth=1, num_heads=2, decoder_width=4)
    images, order = torch.rand(6, 1, 4, 4), network.random_order(6, seed=0)
    given = dict(images=images, order=order)
    return {
        "MaskedAutoencoder": call(image_shape=(1, 4, 4), patch_size=2),
        "MaskedAutoencoder.patchify": of(network, images=images),
        "MaskedAutoencoder.unpatchify": of(network, patches=torch.rand(6, 4, 4)),
        "MaskedAutoencoder.targets": of(network, images=images),
        "MaskedAutoencoder.random_order": of(network, num_images=3),
        "MaskedAutoencoder.visible": of(network, order=order),
        "MaskedAutoencoder.encode": of(network, **given),
        "MaskedAutoencoder.forward": of(network, **given),
        "MaskedAutoencoder.features": of(network, images=images),
        "MaskedAutoencoder.reconstruct": of(network, **given),
        "MaskedAutoencoder.terms": of(network, **given, teacher=network),
        "MaskedAutoencoder.fit": of(
            network,
            images=images,
            num_steps=1,
            momentum=0.5,
            optimizer=partial(torch.optim.Adam, lr=0.001),
            progress=False,
        ),
        "MaskedAutoencoder.model": of(network, images=images, subsample_size=2),
        "MaskedAutoencoder.guide": of(network, images=images, subsample_size=2),
    }


TABLES = {
    "pyro_ext.nn (mean teachers)": blocks,
    "pyro_ext.handlers (consistency)": handlers,
    "pyro_ext.models.vision": autoencoders,
}
