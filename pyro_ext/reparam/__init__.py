"""Reparameterizers of Pyro models, for :func:`pyro.poutine.reparam`."""

from pyro_ext.reparam.expansion import ExpansionReparam, merge_factors

__all__ = ["ExpansionReparam", "merge_factors"]
