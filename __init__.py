"""ComfyUI-NestedAttention: one photograph, one word, one picture (arXiv:2501.01407)."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./js"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
