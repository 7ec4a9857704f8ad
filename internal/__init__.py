"""Sluice's layers. Imports follow the arrows of the README's picture; `test/test_layering.py` checks it."""
