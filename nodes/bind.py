"""The node that gives a subject its word."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..nested_core.binding import bind
from ..nested_core.fidelity import AS_TRAINED
from ..nested_core.schedule import SCHEDULES
from ..nested_core.subject import Subject, SubjectSequence
from .bridge.notices import own_id
from .bridge.shown import show_subjects, shows_pictures
from .search import LIKENESS
from .sockets import BindingSocket, NodeSchema, SubjectSocket


def word_inputs() -> list[io.Input]:
    """The word in the prompt, and what it is read as."""
    return [
        io.String.Input(
            "token",
            default="<person>",
            tooltip="The word you write in the prompt. Upper and lower case matter.",
        ),
        io.String.Input(
            "noun",
            default="",
            tooltip="What the text encoder reads instead of the token: it decides what kind of "
            "thing is drawn and where. Empty: the encoder's own noun.",
        ),
    ]


def fidelity_input(optional: bool = False) -> io.Input:
    """The one knob between the prompt and the subject."""
    return io.Float.Input(
        "fidelity",
        default=AS_TRAINED,
        min=0.0,
        max=1.0,
        step=0.01,
        display_mode=io.NumberDisplay.slider,
        optional=optional,
        tooltip="Left, the picture follows the prompt and any person or dog will do; "
        "right, it holds on to the photograph. 0.5: as trained.",
    )


class BindSubject(io.ComfyNode):
    @classmethod
    @shows_pictures
    def define_schema(cls) -> io.Schema:
        return NodeSchema(
            node_id="NestedAttention_BindSubject",
            display_name="Bind Subject",
            description="Gives a subject a word of its own. Where the prompt says that word, the "
            "subject appears.",
            search_aliases=[*LIKENESS, "token", "bind face", "trigger word"],
            inputs=[
                SubjectSocket.Input(
                    "subject", tooltip="Who or what the word in the prompt stands for."
                ),
                *word_inputs(),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    advanced=True,
                    tooltip="0 draws any person or dog, 1 this one as trained; above 1 exaggerates and "
                    "may break the style.",
                ),
                io.Float.Input(
                    "token_weight",
                    default=1.0,
                    min=0.1,
                    max=10.0,
                    step=0.05,
                    advanced=True,
                    tooltip="How much of the picture listens to the token. Above 1 the subject takes "
                    "more room and the rest of the prompt less.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    advanced=True,
                    tooltip="Starting later leaves the composition to the prompt.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    advanced=True,
                    tooltip="Ending earlier leaves fine texture and style to the prompt.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where in the new picture the subject may act. Outside, the word is just "
                    "its noun.",
                ),
                io.String.Input(
                    "sites",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Attention layers in which the subject acts. UNets: u, m0 or u3-5; !d leaves "
                    "the input blocks out. Flux: d0-18, s0-37. Other transformers: b0-59. Empty: "
                    "all, as trained.",
                ),
                fidelity_input(optional=True),
                io.Combo.Input(
                    "schedule",
                    options=list(SCHEDULES),
                    default="constant",
                    optional=True,
                    advanced=True,
                    tooltip="early fades the subject out, so that the prompt finishes the picture; late "
                    "fades it in, so that the prompt composes it; ease does both at the ends.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[BindingSocket.Output(display_name="binding")],
        )

    @classmethod
    def execute(
        cls,
        subject: Subject | SubjectSequence,
        token: str = "<person>",
        noun: str = "",
        strength: float = 1.0,
        token_weight: float = 1.0,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        mask: Tensor | None = None,
        sites: str = "",
        fidelity: float = AS_TRAINED,
        schedule: str = "constant",
    ) -> io.NodeOutput:
        return io.NodeOutput(
            bind(
                subject,
                token=token,
                noun=noun,
                strength=strength,
                token_weight=token_weight,
                start_percent=start_percent,
                end_percent=end_percent,
                mask=mask,
                sites=sites,
                schedule=schedule,
                fidelity=fidelity,
                node=own_id(cls),
            ),
            ui=show_subjects([subject]),
        )
