"""TorchCompileModel on the small UNet, each test with a compiler that has seen nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pack
import scenes
import torch._dynamo


def fresh_scene(**unet: Any) -> Iterator[scenes.Scene]:
    """For a fixture; entries replace those of the small UNet."""
    torch._dynamo.reset()
    scene = scenes.make_scene_of("sd15", **{**scenes.SMALL, **unet})
    scene.steps = 2
    yield scene
    torch._dynamo.reset()


def as_compiled(model: Any) -> Any:
    return pack.run_host(
        "TorchCompileModel", extra="nodes_torch_compile", model=model, backend="eager"
    )
