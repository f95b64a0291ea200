"""What `dev.py` is made of: finding or making a ComfyUI, and running things inside it.

Python's standard library only, so that a fresh checkout needs nothing installed.
"""
