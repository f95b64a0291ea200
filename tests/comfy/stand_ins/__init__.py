"""Stand-ins of other packs, written from what such packs do and not from their code.

Each is small, does one thing that packs are known to do to a UNet, a batch or a text encoder, and
knows nothing of this pack.
"""
