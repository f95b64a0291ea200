"""The node that puts bound subjects into a model and its text encoder."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..nested_core.binding import Binding, check_tokens_differ
from .bridge.families.registry import check_clip, host_family_of
from .bridge.model.patch import bind_model
from .bridge.notices import own_id, tell
from .bridge.shown import show_subjects, shows_pictures
from .bridge.text.clip import bind_clip
from .search import LIKENESS
from .sockets import BindingSocket, NodeSchema

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP

_MAX_BINDINGS = 32


class ApplyNestedAttention(io.ComfyNode):
    @classmethod
    @shows_pictures
    def define_schema(cls) -> io.Schema:
        return NodeSchema(
            node_id="NestedAttention_Apply",
            display_name="Apply Nested Attention",
            description="Makes a checkpoint know your subjects. Use it like a LoRA: between Load "
            "Checkpoint and the text encode nodes and sampler.",
            search_aliases=[*LIKENESS, "apply ipadapter", "apply instantid", "regional prompt"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The checkpoint's MODEL; itself it stays as it is."
                ),
                io.Clip.Input(
                    "clip",
                    tooltip="The checkpoint's CLIP. Encode your prompts with the CLIP that comes out: "
                    "only that one knows the tokens.",
                ),
                io.Autogrow.Input(
                    "bindings",
                    template=io.Autogrow.TemplatePrefix(
                        BindingSocket.Input(
                            "binding",
                            # The page leaves out what is bypassed or muted; a required one would
                            # stop the run.
                            optional=True,
                            tooltip="One subject and its word; connect as many as you like. Without "
                            "any, model and clip pass through.",
                        ),
                        prefix="binding_",
                        min=1,
                        max=_MAX_BINDINGS,
                    ),
                ),
                io.Float.Input(
                    "separation",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Keeps several subjects from growing alike: each pixel listens to the "
                    "subject that is strongest there, found from the attention maps as the picture "
                    "forms. 0 is off; a binding's mask wins over it.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Model.Output(), io.Clip.Output()],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        bindings: dict[str, Binding | None] | None = None,
        separation: float = 0.0,
    ) -> io.NodeOutput:
        connected = [binding for binding in (bindings or {}).values() if binding is not None]
        if not connected:
            tell(
                "no binding is connected, or all are bypassed or muted: model and clip pass through.",
                [own_id(cls)],
                logging.INFO,
            )
            return io.NodeOutput(model, clip)
        check_tokens_differ(connected)
        check_clip(clip, host_family_of(model))
        return io.NodeOutput(
            bind_model(model, connected, separation, own_id(cls)),
            bind_clip(clip, connected),
            ui=show_subjects(binding.subject for binding in connected),
        )
