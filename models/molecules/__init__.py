"""Interatomic potentials that know how sure they are of energies and forces."""

__all__: list[str] = []
