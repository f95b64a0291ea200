"""Pictures drawn through ComfyUI by each method, and kept on disk."""
