"""Reparameterizers of Pyro models, for :func:`pyro.poutine.reparam`."""

from pyro_ext.reparam.expansion import ExpansionReparam, merge_factors
from pyro_ext.reparam.modules import ExpandedModule, expand_module

__all__ = ["ExpandedModule", "ExpansionReparam", "expand_module", "merge_factors"]
