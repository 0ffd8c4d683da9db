"""Predictive rules made of bivariate copulas: densities, regression and classification."""
