"""Mixtures with any number of clusters."""

from pyro_ext.models.nonparametric.nrm_mixture import NRMMixture
from pyro_ext.models.nonparametric.nrm_model_mixture import NRMModelMixture

__all__ = ["NRMMixture", "NRMModelMixture"]
