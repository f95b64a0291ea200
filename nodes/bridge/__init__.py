"""The only code that touches ComfyUI's insides (`comfy.*`, `folder_paths`)."""
