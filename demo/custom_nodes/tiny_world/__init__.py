"""Loader nodes for the tiny world's trained models. Only the demo and the tests show this pack to
ComfyUI; a link to this folder in `custom_nodes` shows it to yours.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from comfy_api.latest import ComfyExtension, io

_PACKAGE = "nested_attention_tiny_world"


def _models() -> ModuleType:
    """`demo/tiny_world/models.py`, by its place and under a name of its own: on the path, `demo`
    would offer its modules to everybody."""
    if _PACKAGE not in sys.modules:
        file = _folder() / "__init__.py"
        spec = importlib.util.spec_from_file_location(
            _PACKAGE, file, submodule_search_locations=[str(file.parent)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[_PACKAGE])
    return importlib.import_module(f"{_PACKAGE}.models")


def _folder() -> Path:
    # ComfyUI may see this file through a link or, on a drive without links, as a copy.
    beside = Path(os.path.realpath(__file__)).parents[2]
    root = os.environ.get("NESTED_ATTENTION_ROOT")
    candidates = [beside, *([Path(root, "demo")] if root else [])]
    for demo in candidates:
        if (demo / "tiny_world" / "models.py").is_file():
            return demo / "tiny_world"
    raise ImportError(
        f"{__file__}: found no tiny_world/models.py in {' or '.join(map(str, candidates))}. This pack "
        "is a part of the Nested Attention repository: link its folder, don't copy it."
    )


models = _models()


class TinyWorldLoadCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TinyWorld_LoadCheckpoint",
            display_name="Load Tiny World Checkpoint",
            category="tiny_world",
            description="A text-to-image model that knows nothing but the tiny world, at 32 x 32 "
            "pixels. Sample it with cfg 1 and the scheduler 'simple'.",
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(models.load_model(), models.load_clip(), models.load_vae())


class TinyWorldLoadTransformer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        transformers = [name for name in models.FILES if name != models.UNET]
        return io.Schema(
            node_id="TinyWorld_LoadTransformer",
            display_name="Load Tiny World Transformer",
            category="tiny_world",
            description="A transformer that knows what the tiny world's checkpoint knows: joint is a "
            "small Flux, cross a small Wan, whose weights you have to train. Sample it with cfg 1 and "
            "the scheduler 'simple'.",
            inputs=[io.Combo.Input("model_name", options=transformers)],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls, model_name: str) -> io.NodeOutput:
        return io.NodeOutput(
            models.load_model(name=model_name),
            models.load_clip(name=model_name),
            models.load_vae(),
        )


class TinyWorldLoadClipVision(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TinyWorld_LoadClipVision",
            display_name="Load Tiny World CLIP Vision",
            category="tiny_world",
            description="The image encoder of the tiny world, for photographs of 32 x 32 pixels.",
            outputs=[io.ClipVision.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(models.load_clip_vision())


class TinyWorldExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TinyWorldLoadCheckpoint, TinyWorldLoadTransformer, TinyWorldLoadClipVision]


async def comfy_entrypoint() -> TinyWorldExtension:
    return TinyWorldExtension()
