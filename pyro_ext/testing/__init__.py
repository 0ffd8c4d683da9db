"""Checks that models, distributions and samplers must pass, as functions for anyone's tests."""
