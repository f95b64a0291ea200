"""The nodes: schema and a short `execute` each. ComfyUI's insides are behind `bridge`."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .apply import ApplyNestedAttention
from .bind import BindSubject
from .bridge.paths import register_folders
from .examples import ExamplePhotograph
from .loaders import LoadEncoder, LoadSubject
from .maps import RecordMaps, ShowMaps
from .personalise import PersonaliseSubject
from .regions import CropMasks
from .subject import EncodeSubject, SaveSubject, SubjectPerPicture

register_folders()


class NestedAttentionExtension(ComfyExtension):
    """The pack, as ComfyUI asks for it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            PersonaliseSubject,
            LoadEncoder,
            EncodeSubject,
            SaveSubject,
            LoadSubject,
            BindSubject,
            ApplyNestedAttention,
            SubjectPerPicture,
            CropMasks,
            RecordMaps,
            ShowMaps,
            ExamplePhotograph,
        ]


async def comfy_entrypoint() -> NestedAttentionExtension:
    return NestedAttentionExtension()
