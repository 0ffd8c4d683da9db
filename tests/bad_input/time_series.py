"""Valid calls of models of time series, of what they are made of, and of their data."""

from collections.abc import Callable

import torch

from pyro_ext.distributions import CauchyGP as Prior
from pyro_ext.models.time_series import GRUD, DecayImputer, FilledClassifier, SupervisedNotMIWAE
from tests.bad_input.walk import Call, call, of

X = torch.randn(4, 5, 2)
MASK = torch.rand(4, 5, 2) < 0.7
MASK[0, 0, 0] = True
TIMES = torch.arange(5.0).expand(4, 5) + 0.5
LENGTHS, Y = torch.tensor([5, 3, 4, 5]), torch.tensor([0, 1, 0, 1])
SERIES = dict(x=X, mask=MASK, times=TIMES, lengths=LENGTHS)
FIT = dict(
    num_epochs=1,
    batch_size=4,
    learning_rate=1e-3,
    max_norm=5.0,
    validation_fraction=0.25,
    patience=2,
    seed=0,
    checkpoint=None,
    progress=False,
)


def time_series() -> dict[str, Call]:
    model = SupervisedNotMIWAE(2, 3, latent_size=1, width=4, num_layers=1, num_static=1)
    network, recurrent = FilledClassifier(2, 3, width=4, num_layers=1), GRUD(2, 3, width=4)
    imputer = DecayImputer(2)
    given = SERIES | {"static": torch.randn(4, 1)}
    return {
        "CauchyGP": call(),
        "CauchyGP.covariance": of(Prior(), num_steps=4),
        "CauchyGP.prior": of(Prior(), lengths=LENGTHS, num_steps=5, dtype=torch.float32),
        "DecayImputer": call(num_channels=2),
        "DecayImputer.gamma": of(imputer, elapsed=torch.rand(3, 2)),
        "DecayImputer.forward": of(imputer, x=X, mask=MASK, generated=X, times=TIMES),
        "FilledClassifier": call(num_channels=2, num_classes=3),
        "FilledClassifier.forward": of(network, **SERIES),
        "FilledClassifier.predict": of(network, **SERIES),
        "FilledClassifier.fit": of(network, y=Y, **SERIES, **FIT),
        "GRUD": call(num_channels=2, num_classes=3),
        "GRUD.forward": of(recurrent, **SERIES),
        "SupervisedNotMIWAE": call(num_channels=2, num_classes=3, prior=Prior(), duration=2.0),
        "SupervisedNotMIWAE.model": of(model, y=Y, **given),
        "SupervisedNotMIWAE.guide": of(model, y=Y, **given),
        "SupervisedNotMIWAE.loss": of(model, y=Y, **given, dropout_rate=0.2),
        "SupervisedNotMIWAE.predict": of(model, **given),
        "SupervisedNotMIWAE.fit": of(model, y=Y, **given, **FIT),
        "fill_gaps": call(x=X, mask=MASK),
    }


def distributions() -> dict[str, Call]:
    factor = torch.tensor([[1.0, 0.0], [0.5, 2.0]])
    return {
        "CauchyGP": call(),
        "PaddedMultivariateNormal": call(
            scale_tril=factor, lengths=torch.tensor([2, 1]), validate_args=True
        ),
    }


def handlers() -> dict[str, Call]:
    return {"obs_dropout": call(sites=["seen"], rate=0.3, generator=torch.Generator())}


def datasets() -> dict[str, Call]:
    return {"load_time_series": call(name="japanese_vowels")}


TABLES: dict[str, Callable[[], dict[str, Call]]] = {
    "pyro_ext.models.time_series": time_series,
    "pyro_ext.distributions (sequences)": distributions,
    "pyro_ext.handlers (observation dropout)": handlers,
    "pyro_ext.datasets (time series)": datasets,
}
