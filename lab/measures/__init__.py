"""Figures of those pictures."""
