"""Tests of the example `multispectral`."""
