"""Errors that a user can cause. A message says where, what was found, what was expected, the remedy."""

from __future__ import annotations


class NestedAttentionError(ValueError):
    """Base of every error this project raises on purpose."""


class CheckpointError(NestedAttentionError):
    """A file that is not what it was loaded as: corrupt, foreign, of another version or another layout."""


class SiteError(NestedAttentionError):
    """A site selector that cannot be read, or that names no attention layer of the model."""


class SubjectError(NestedAttentionError):
    """A photograph, mask or image encoder from which no subject can be made."""


class BindingError(NestedAttentionError):
    """A binding whose token, noun, strength, weight or schedule makes no sense."""


class HostError(NestedAttentionError):
    """A model, text encoder or image encoder that this method cannot be applied to."""
