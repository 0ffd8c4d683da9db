"""Models of time series with gaps, at regular or irregular times."""

from pyro_ext.distributions import CauchyGP
from pyro_ext.models.time_series.baselines import GRUD, FilledClassifier, fill_gaps
from pyro_ext.models.time_series.networks import DecayImputer
from pyro_ext.models.time_series.supervised_not_miwae import SeriesPrediction, SupervisedNotMIWAE
from pyro_ext.models.time_series.training import SeriesTraining

__all__ = [
    "GRUD",
    "CauchyGP",
    "DecayImputer",
    "FilledClassifier",
    "SeriesPrediction",
    "SeriesTraining",
    "SupervisedNotMIWAE",
    "fill_gaps",
]
