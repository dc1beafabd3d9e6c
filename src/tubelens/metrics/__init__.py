"""Measures of how far a map can be trusted; no metric imports a method."""
