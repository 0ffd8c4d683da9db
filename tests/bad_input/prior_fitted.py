"""Valid calls of prior-data fitted networks, bars and scaling laws, for :mod:`walk` to spoil."""

from pathlib import Path
from tempfile import mkdtemp

import pyro
import pyro.distributions as dist
import torch

from pyro_ext.distributions import BarDistribution
from pyro_ext.inference import PriorDataFittedNetwork, PriorFittedTransformer
from pyro_ext.models.scaling_laws import ScalingLaw, extrapolate
from tests.bad_input.walk import Call, call, of

BORDERS = torch.linspace(0.0, 1.0, 5)
X, Y, XQ = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.6, 0.5, 0.4]), torch.tensor([0.6, 0.9])
SIZES = torch.tensor([100.0, 200.0, 400.0, 800.0, 1600.0])
ERRORS = 3.0 * SIZES**-0.4 + 0.1


def prior(x: torch.Tensor) -> None:
    pyro.sample("y", dist.Normal(x, 1.0).to_event(1))


def inputs(num_sets: int, num_points: int) -> torch.Tensor:
    return torch.rand(num_sets, num_points)


def sampler(x: torch.Tensor, num_context: int) -> torch.Tensor:
    return x


def network() -> PriorDataFittedNetwork:
    net = PriorFittedTransformer(4, width=8, num_layers=1)
    options = dict(num_points=(4, 6), batch_size=2, num_for_borders=20, seed=0)
    return PriorDataFittedNetwork(prior, net, BORDERS, **options)


def distributions() -> dict[str, Call]:
    bars = BarDistribution(torch.zeros(3, 4), BORDERS)
    return {
        "BarDistribution": call(logits=torch.zeros(3, 4), borders=BORDERS),
        "BarDistribution.log_prob": of(bars, value=torch.tensor([0.1, 0.4, 0.9])),
        "BarDistribution.icdf": of(bars, value=torch.tensor([0.1, 0.4, 0.9])),
        "bar_borders": call(values=torch.rand(40), num_bars=4),
    }


def inference() -> dict[str, Call]:
    path = Path(mkdtemp()) / "network.safetensors"
    network().save(path)
    return {
        "PriorDataFittedNetwork": call(
            prior=prior,
            net=PriorFittedTransformer(4, width=8, num_layers=1),
            borders=BORDERS,
            inputs=inputs,
            sampler=sampler,
            num_points=(4, 6),
            context=(0.1, 0.9),
        ),
        "PriorDataFittedNetwork.draw": of(network(), num_sets=2, num_points=5, num_context=2),
        "PriorDataFittedNetwork.fit": of(network(), num_steps=1, progress=False),
        "PriorDataFittedNetwork.predictive": of(network(), xc=X, yc=Y, xq=XQ),
        "PriorDataFittedNetwork.save": of(network(), path=path),
        "PriorDataFittedNetwork.load": call(path=path),
        "PriorFittedTransformer": call(num_bars=4),
        "PriorFittedTransformer.take_units": of(
            PriorFittedTransformer(4, width=8), x=torch.rand(5, 1), y=torch.rand(5)
        ),
    }


def scaling_laws() -> dict[str, Call]:
    path = Path(mkdtemp()) / "curve.csv"
    path.write_text("size,error\n1,0.5\n2,0.4\n")
    found, law = extrapolate(SIZES, ERRORS, [2000.0, 3000.0]), ScalingLaw().fit(SIZES, ERRORS)
    grid = torch.linspace(0.01, 1.0, 12)
    return {
        "Extrapolation.quantile": of(found, prob=0.5),
        "Extrapolation.interval": of(found),
        "Extrapolation.log_prob": of(found, y=torch.tensor([0.2, 0.2])),
        "Extrapolation.plot": of(found),
        "ScalingLaw": call(),
        "ScalingLaw.fit": of(ScalingLaw(), x=SIZES, y=ERRORS, num_steps=2),
        "ScalingLaw.predict": of(law, x=SIZES),
        "ScalingLaw.predictive": of(law, x=SIZES),
        "extrapolate": call(x=SIZES, y=ERRORS, query=2.0 * SIZES, horizon=4000.0, scale=1.0),
        "pretrained_network": call(),
        "read_curve": call(path=path, x="size", y="error"),
        "sample_scaling_curves": call(x=grid.expand(3, 12), family="down", num_context=5),
        "scaling_curve_prior": call(x=grid, family="down", num_context=5),
        "scaling_grid": call(num_curves=2, num_points=5),
    }


def datasets() -> dict[str, Call]:
    return {"load_scaling_curves": call(name="translation")}


TABLES = {
    "pyro_ext.distributions (bars)": distributions,
    "pyro_ext.inference (prior-data fitted)": inference,
    "pyro_ext.models.scaling_laws": scaling_laws,
    "pyro_ext.datasets (scaling curves)": datasets,
}
