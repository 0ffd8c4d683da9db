r"""Matrix groups, tensors they act on, and projections onto equivariant linear maps.

A group is defined by generators, so that any group of matrices can be a candidate for the symmetry
of data. A linear map :math:`W` between tensors is equivariant under a group if
:math:`\rho_{out}(g) W \rho_{in}(g)^{-1} = W` for all elements :math:`g`. Such maps form the null
space of a set of linear conditions, one for each generator [1].

[1] M. Finzi, M. Welling, A. G. Wilson (2021), A practical method for constructing equivariant
multilayer perceptrons for arbitrary matrix groups.
"""

from pyro_ext.groups.matrix_groups import SO, EmbeddedO2, Group, O, Scale
from pyro_ext.groups.projector import EquivariantProjector
from pyro_ext.groups.representations import TensorRep

__all__ = ["SO", "EmbeddedO2", "EquivariantProjector", "Group", "O", "Scale", "TensorRep"]
