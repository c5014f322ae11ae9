"""Measurements: error rates, cost, speed."""
