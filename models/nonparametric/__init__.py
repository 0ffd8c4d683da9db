"""Mixtures with any number of clusters."""

from pyro_ext.models.nonparametric.nrm_mixture import NRMMixture

__all__ = ["NRMMixture"]
