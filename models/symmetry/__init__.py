"""Symmetries that are learned from data, and networks that hold as many as the data support."""

from pyro_ext.models.symmetry.axial_pde import XMPP, XCViT
from pyro_ext.models.symmetry.transport import kernel_fields, transport_fields, transport_step

__all__ = ["XMPP", "XCViT", "kernel_fields", "transport_fields", "transport_step"]
