"""The tiny world: a base model and an encoder small enough to be trained and measured anywhere."""
