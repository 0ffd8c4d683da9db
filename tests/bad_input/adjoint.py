"""Valid calls of adjoint samplers and path energies, for :mod:`walk` to spoil."""

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from pyro_ext.distributions import DirichletOU
from pyro_ext.inference import AdjointSampler, AutoAdjointSampler, FunctionalAdjointSampler
from pyro_ext.inference.adjoint import ConstantNoise, ControlNetwork, DoubleWell1D, OnsagerMachlup
from tests.bad_input.walk import Call, call, of

X = torch.linspace(-1.0, 1.0, 8)


def model(x):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc.sum(), 1.0), obs=x)


def adjoint() -> dict[str, Call]:
    reference = DirichletOU(2.0, 2, 1)
    energy = OnsagerMachlup(DoubleWell1D())
    grid = torch.linspace(0.0, 2.0, 5)
    options: dict[str, Any] = dict(
        num_time_steps=2,
        num_draws=3,
        steps_per_round=2,
        batch_size=2,
        num_rounds_kept=1,
        clip_norm=1.0,
        optimizer=partial(torch.optim.Adam, lr=0.1),
        scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=2),
        max_norm=1.0,
        seed=0,
    )
    vector: dict[str, Any] = dict(
        energy=lambda x: x.square().sum(-1),
        control=ControlNetwork(2, (4,)),
        schedule=ConstantNoise(1.0),
        temperature=1.0,
        event_shape=2,
    )
    path: dict[str, Any] = dict(
        reference=reference, path_energy=energy, control=ControlNetwork((2, 1), (4,)), grid=grid
    )
    sampler = AdjointSampler(**vector, **options)
    paths = FunctionalAdjointSampler(**path, **options)
    guide = AutoAdjointSampler(model, backend="eager", **options).fit(X, num_steps=0)
    drawn: dict[str, Any] = dict(num_samples=2, num_time_steps=2)
    return {
        "AdjointSampler": call(**vector, **options, ema_decay=0.9),
        "AdjointSampler.fit": of(sampler, num_steps=1, save_every=1, progress=False),
        "AdjointSampler.sample": of(sampler, **drawn),
        "AdjointSampler.evaluate": of(sampler, **drawn),
        "FunctionalAdjointSampler": call(**path, **options, ema_decay=0.9),
        "FunctionalAdjointSampler.sample": of(paths, **drawn, grid=grid),
        "AutoAdjointSampler": call(
            model=model,
            schedule=ConstantNoise(1.0),
            hidden_features=(4,),
            backend="eager",
            **options,
        ),
        "AutoAdjointSampler.fit": of(guide, {"x": X}, num_steps=0),
        "AutoAdjointSampler.sample": of(guide, **drawn),
        "PathPCN": call(
            reference=reference, path_energy=energy, grid=grid, backend="eager", steps_per_sample=1
        ),
        "PathModel": call(reference=reference, path_energy=energy, grid=grid),
        "ControlNetwork": call(event_shape=(2, 1), hidden_features=(4,), scale=torch.cos),
        "ConstantNoise": call(scale=1.0),
        "GeometricNoise": call(),
        "DoubleWell1D": call(),
        "DoubleWell2D": call(),
        "MullerBrown": call(),
        "OnsagerMachlup": call(potential=DoubleWell1D()),
    }


TABLES = {"pyro_ext.inference.adjoint": adjoint}
