"""Generative models of graphs."""

from pyro_ext.models.graphs.embedding import pad_graphs, spectral_embedding
from pyro_ext.models.graphs.embedding_vae import GraphEmbeddingVAE
from pyro_ext.models.graphs.flow import EquivariantSplineFlow

__all__ = [
    "EquivariantSplineFlow",
    "GraphEmbeddingVAE",
    "pad_graphs",
    "spectral_embedding",
]
