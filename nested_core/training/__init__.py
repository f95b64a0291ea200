"""Training of encoders: `python -m nested_core.training --help`, and `docs/training.md`.

Start with `loss.py`, the objective, and `engine.py`, the loop. `host.py` is the only file that knows
diffusers; everything else speaks to the base model through `protocol.py`.
"""
