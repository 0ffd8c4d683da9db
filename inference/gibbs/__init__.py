"""Blocks of sites, each with its kernel, and updates from full conditionals."""
