"""Trains the tiny world's models: image encoder, base model, encoder for Nested Attention."""
