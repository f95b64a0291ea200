"""Nested Attention, the method, free of any host: see `attention.py` first."""
