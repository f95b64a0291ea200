"""Writes the templates of the transformers, example_workflows/*_subject.json, one for each family.

    python devtools/family_templates.py

Each is text to image (or to video) with the family's own loaders, latent and sampling, and the three
nodes of `quick_subject.json`, from which the rest is taken. Models and settings are those of
ComfyUI's own template of the family.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "example_workflows"
_HUB = "https://huggingface.co/{}/resolve/main/{}"
_CHECKPOINT, _APPLY, _POSITIVE, _NEGATIVE, _LATENT, _SAMPLER, _DECODE, _SAVE = range(1, 9)
_SUBJECT, _NOTE = 9, 14
_LINK_TYPES = {"positive": "CONDITIONING", "negative": "CONDITIONING", "latent_image": "LATENT"}
_KINDS = {"int": "INT", "float": "FLOAT", "str": "COMBO"}

Graph = dict[str, Any]
Node = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """A file that the template names: where it lies on the hub, and in which folder it belongs."""

    repository: str
    path: str
    folder: str

    @property
    def name(self) -> str:
        return Path(self.path).name

    def properties(self) -> dict[str, str]:
        """As the page's dialogue of missing models reads it."""
        url = _HUB.format(self.repository, self.path)
        return {"name": self.name, "url": url, "directory": self.folder}


@dataclass(frozen=True)
class Template:
    """What a family's text to image has of its own.

    Attributes:
        label: the model's name.
        licence: of the model's weights.
        models: diffusion model, text encoders, VAE; a single checkpoint holds them all.
        clip_type: of the text encoders' loader.
        latent: the node that makes the empty latent, and its widgets.
        shift: the node that sets the time shift, and its value.
        guidance: of a model that is told it; 0: not told.
        frames_per_second: of a video; 0: a picture.
    """

    label: str
    licence: str
    models: Sequence[Model]
    clip_type: str
    latent: tuple[str, Mapping[str, int]]
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    shift: tuple[str, float] | None = None
    guidance: float = 0.0
    frames_per_second: int = 0


def _split(path: str) -> str:
    return f"split_files/{path}"


_AE = Model("Comfy-Org/z_image_turbo", _split("vae/ae.safetensors"), "vae")
_T5 = Model("comfyanonymous/flux_text_encoders", "t5xxl_fp16.safetensors", "text_encoders")
_CLIP_L = Model("comfyanonymous/flux_text_encoders", "clip_l.safetensors", "text_encoders")
_SD3_LATENT = "EmptySD3LatentImage"
_SQUARE = {"width": 1024, "height": 1024, "batch_size": 1}

TEMPLATES = {
    "flux": Template(
        "FLUX.1 [dev]",
        "FLUX.1 [dev] Non-Commercial License",
        (
            Model("Comfy-Org/flux1-dev", "flux1-dev.safetensors", "diffusion_models"),
            _CLIP_L,
            _T5,
            _AE,
        ),
        "flux",
        (_SD3_LATENT, _SQUARE),
        steps=20,
        cfg=1.0,
        sampler="euler",
        scheduler="simple",
        guidance=3.5,
    ),
    "sd3": Template(
        "Stable Diffusion 3.5 large",
        "Stability AI Community License",
        (
            Model(
                "Comfy-Org/stable-diffusion-3.5-fp8",
                "sd3.5_large_fp8_scaled.safetensors",
                "checkpoints",
            ),
        ),
        "",
        (_SD3_LATENT, _SQUARE),
        steps=20,
        cfg=4.0,
        sampler="euler",
        scheduler="sgm_uniform",
    ),
    "qwen_image": Template(
        "Qwen-Image",
        "Apache 2.0",
        (
            Model(
                "Comfy-Org/Qwen-Image_ComfyUI",
                _split("diffusion_models/qwen_image_fp8_e4m3fn.safetensors"),
                "diffusion_models",
            ),
            Model(
                "Comfy-Org/Qwen-Image_ComfyUI",
                _split("text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors"),
                "text_encoders",
            ),
            Model(
                "Comfy-Org/Qwen-Image_ComfyUI",
                _split("vae/qwen_image_vae.safetensors"),
                "vae",
            ),
        ),
        "qwen_image",
        (_SD3_LATENT, {"width": 1328, "height": 1328, "batch_size": 1}),
        steps=20,
        cfg=4.0,
        sampler="euler",
        scheduler="simple",
        shift=("ModelSamplingAuraFlow", 3.1),
    ),
    "z_image": Template(
        "Z-Image-Turbo",
        "Apache 2.0",
        (
            Model(
                "Comfy-Org/z_image_turbo",
                _split("diffusion_models/z_image_turbo_bf16.safetensors"),
                "diffusion_models",
            ),
            Model(
                "Comfy-Org/z_image_turbo",
                _split("text_encoders/qwen_3_4b.safetensors"),
                "text_encoders",
            ),
            _AE,
        ),
        "lumina2",
        (_SD3_LATENT, _SQUARE),
        steps=8,
        cfg=1.0,
        sampler="res_multistep",
        scheduler="simple",
        shift=("ModelSamplingAuraFlow", 3.0),
    ),
    "anima": Template(
        "Anima",
        "CircleStone Labs Non-Commercial License",
        (
            Model(
                "circlestone-labs/Anima",
                _split("diffusion_models/anima-base-v1.0.safetensors"),
                "diffusion_models",
            ),
            Model(
                "circlestone-labs/Anima",
                _split("text_encoders/qwen_3_06b_base.safetensors"),
                "text_encoders",
            ),
            Model("circlestone-labs/Anima", _split("vae/qwen_image_vae.safetensors"), "vae"),
        ),
        "stable_diffusion",
        ("EmptyLatentImage", _SQUARE),
        steps=30,
        cfg=4.0,
        sampler="euler",
        scheduler="simple",
    ),
    "wan": Template(
        "Wan 2.1",
        "Apache 2.0",
        (
            Model(
                "Comfy-Org/Wan_2.1_ComfyUI_repackaged",
                _split("diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors"),
                "diffusion_models",
            ),
            Model(
                "Comfy-Org/Wan_2.1_ComfyUI_repackaged",
                _split("text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors"),
                "text_encoders",
            ),
            Model(
                "Comfy-Org/Wan_2.1_ComfyUI_repackaged",
                _split("vae/wan_2.1_vae.safetensors"),
                "vae",
            ),
        ),
        "wan",
        (
            "EmptyHunyuanLatentVideo",
            {"width": 832, "height": 480, "length": 33, "batch_size": 1},
        ),
        steps=30,
        cfg=6.0,
        sampler="uni_pc",
        scheduler="simple",
        shift=("ModelSamplingSD3", 8.0),
        frames_per_second=16,
    ),
}


def main() -> int:
    for family in TEMPLATES:
        path = FOLDER / f"{family}_subject.json"
        path.write_text(text_of(family), encoding="utf-8")
        print(path.name)
    return 0


def text_of(family: str) -> str:
    """The file of a family's template."""
    return (
        json.dumps(Builder(TEMPLATES[family], family).graph(), indent=1, ensure_ascii=False) + "\n"
    )


@dataclass
class Builder:
    """Makes one graph. Nodes keep the numbers that they have in `quick_subject.json`."""

    template: Template
    family: str
    nodes: dict[int, Node] = field(default_factory=dict)
    links: list[list[Any]] = field(default_factory=list)

    def graph(self) -> Graph:
        graph = json.loads((FOLDER / "quick_subject.json").read_text(encoding="utf-8"))
        self.nodes = {node["id"]: copy.deepcopy(node) for node in graph["nodes"]}
        self.links = [link for link in graph["links"] if self._stays(link)]
        self._load()
        self._sample()
        self._save()
        self._tell()
        self._write_links()
        order = sorted(self.nodes.values(), key=lambda node: node["id"])
        numbers = [link[0] for link in self.links]
        changed = {"last_node_id": max(self.nodes), "last_link_id": max(numbers)}
        return {**graph, **changed, "nodes": order, "links": self.links}

    def _stays(self, link: Sequence[Any]) -> bool:
        """Links of what is replaced are drawn anew."""
        _, source, _, target, *_ = link
        return source != _CHECKPOINT and not (source, target) == (_APPLY, _SAMPLER)

    def _load(self) -> None:
        """The loaders, and from them to Apply and to the VAE's decoder."""
        models = self.template.models
        loader = self.nodes.pop(_CHECKPOINT)
        if len(models) == 1:
            loader["widgets_values"] = [models[0].name]
            loader["properties"]["models"] = [models[0].properties()]
            for output in loader["outputs"]:
                output["links"] = []
            self.nodes[_CHECKPOINT] = loader
            sources = {"MODEL": (1, 0), "CLIP": (1, 1), "VAE": (1, 2)}
        else:
            diffusion, *text, vae = models
            widgets = {"unet_name": diffusion.name, "weight_dtype": "default"}
            self._add(15, "UNETLoader", (40, 40), 90, widgets, ["MODEL"], [diffusion])
            names = ["clip_name"] if len(text) == 1 else ["clip_name1", "clip_name2"]
            files = dict(zip(names, (each.name for each in text), strict=True))
            widgets = {**files, "type": self.template.clip_type, "device": "default"}
            kind = "CLIPLoader" if len(text) == 1 else "DualCLIPLoader"
            self._add(16, kind, (40, 180), 150, widgets, ["CLIP"], text)
            self._add(17, "VAELoader", (40, 380), 60, {"vae_name": vae.name}, ["VAE"], [vae])
            self.nodes[11]["pos"] = [40, 490]
            sources = {"MODEL": (15, 0), "CLIP": (16, 0), "VAE": (17, 0)}
        self._link(sources["MODEL"], _APPLY, "model", "MODEL")
        self._link(sources["CLIP"], _APPLY, "clip", "CLIP")
        self._link(sources["VAE"], _DECODE, "vae", "VAE")
        self.nodes[_SUBJECT]["widgets_values"][3] = f"person_{self.family}.safetensors"

    def _sample(self) -> None:
        template, sampler = self.template, self.nodes[_SAMPLER]
        settings = [template.steps, template.cfg, template.sampler, template.scheduler, 1]
        sampler["widgets_values"] = [1, "randomize", *settings]
        kind, sizes = template.latent
        position, height = (1180, 420), 90 + 30 * len(sizes)
        self._add(_LATENT, kind, position, height, sizes, ["LATENT"], width=420)
        source = (_APPLY, 0)
        if template.shift is not None:
            kind, shift = template.shift
            self._add(18, kind, (820, 500), 80, {"shift": shift}, ["MODEL"], takes="model")
            self._link(source, 18, "model", "MODEL")
            source = (18, 0)
        self._link(source, _SAMPLER, "model", "MODEL")
        if template.guidance:
            widgets = {"guidance": template.guidance}
            taken = {"takes": "conditioning", "width": 420}
            self._add(19, "FluxGuidance", (1180, 660), 80, widgets, ["CONDITIONING"], **taken)
            self._redraw(_POSITIVE, _SAMPLER, 19, "conditioning")
        if template.cfg == 1.0:
            # Nothing is asked of a negative prompt; the sampler's socket must be filled.
            self.nodes.pop(_NEGATIVE)
            self.links = [link for link in self.links if _NEGATIVE not in (link[1], link[3])]
            taken = {"takes": "conditioning", "width": 420}
            self._add(20, "ConditioningZeroOut", (1180, 240), 60, {}, ["CONDITIONING"], **taken)
            self._link((_POSITIVE, 0), 20, "conditioning", "CONDITIONING")
            self._link((20, 0), _SAMPLER, "negative", "CONDITIONING")

    def _save(self) -> None:
        if not self.template.frames_per_second:
            return
        self.links = [link for link in self.links if link[3] != _SAVE]
        self.nodes.pop(_SAVE)
        fps = {"fps": float(self.template.frames_per_second)}
        self._add(21, "CreateVideo", (2030, 40), 90, fps, ["VIDEO"], takes="images")
        self._link((_DECODE, 0), 21, "images", "IMAGE")
        widgets = {"filename_prefix": "nested_attention", "format": "auto", "codec": "auto"}
        self._add(22, "SaveVideo", (2030, 180), 440, widgets, [], takes="video", width=420)
        self._link((21, 0), 22, "video", "VIDEO")

    def _tell(self) -> None:
        template = self.template
        kind = "text to video" if template.frames_per_second else "text to image"
        files = ", ".join(
            f"`{Path(model.name).stem}` in `models/{model.folder}`" for model in template.models
        )
        text = (
            f"{template.label} with a subject: {kind}, and three nodes more: *Example Photograph*, "
            "*Subject from Photo*, *Apply Nested Attention*. `<anna>` in the prompt is the person in "
            "the photograph; the text encoder reads it as the **noun**.\n\n*Example Photograph* is a "
            "picture that comes with the pack, drawn by a program. Put your own photograph with "
            f"*Load Image* in its place.\n\nFiles: {files} (licence {template.licence}), and an encoder "
            f"for people on {template.label} in `models/nested_attention`, with the CLIP vision model "
            "that it was trained with in `models/clip_vision`. Nobody has published such an encoder "
            "yet: it is trained with `python -m nested_core.training`, as `docs/training.md` of the "
            "pack says."
        )
        self.nodes[_NOTE]["widgets_values"] = [text]

    def _add(
        self,
        number: int,
        kind: str,
        position: tuple[int, int],
        height: int,
        widgets: Mapping[str, Any],
        outputs: Sequence[str],
        models: Sequence[Model] = (),
        takes: str = "",
        width: int = 320,
    ) -> None:
        taken = (
            [{"localized_name": takes, "name": takes, "type": "*", "link": None}] if takes else []
        )
        properties: dict[str, Any] = {"Node name for S&R": kind}
        if models:
            properties["models"] = [model.properties() for model in models]
        self.nodes[number] = {
            "id": number,
            "type": kind,
            "pos": list(position),
            "size": [width, height],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [*taken, *(_widget_socket(*widget) for widget in widgets.items())],
            "outputs": [
                {"localized_name": name, "name": name, "type": name, "links": []}
                for name in outputs
            ],
            "properties": properties,
            "widgets_values": list(widgets.values()),
        }

    def _link(self, source: tuple[int, int], target: int, name: str, kind: str) -> None:
        number = max((link[0] for link in self.links), default=0) + 1
        names = [socket["name"] for socket in self.nodes[target]["inputs"]]
        slot = names.index(name)
        self.nodes[target]["inputs"][slot]["type"] = kind
        self.links.append([number, *source, target, slot, kind])

    def _redraw(self, source: int, target: int, between: int, name: str) -> None:
        """Puts a node into a link."""
        (link,) = (each for each in self.links if (each[1], each[3]) == (source, target))
        self.links.remove(link)
        self._link((source, link[2]), between, name, link[5])
        to = self.nodes[target]["inputs"][link[4]]["name"]
        self._link((between, 0), target, to, link[5])

    def _write_links(self) -> None:
        """Into the sockets at both ends; and the order in which nodes run."""
        for node in self.nodes.values():
            for socket in node.get("inputs", []):
                socket["link"] = None
            for socket in node.get("outputs", []):
                socket["links"] = []
        for number, source, output, target, slot, _ in self.links:
            self.nodes[source]["outputs"][output]["links"].append(number)
            self.nodes[target]["inputs"][slot]["link"] = number
        for order, number in enumerate(self._in_order()):
            self.nodes[number]["order"] = order

    def _in_order(self) -> list[int]:
        left, done = sorted(self.nodes), list[int]()
        while left:
            needed = {
                number: {link[1] for link in self.links if link[3] == number} for number in left
            }
            ready = next(number for number in left if needed[number] <= set(done))
            done.append(ready)
            left.remove(ready)
        return done


def _widget_socket(name: str, value: Any) -> dict[str, Any]:
    kind = "STRING" if name == "filename_prefix" else _KINDS[type(value).__name__]
    return {
        "localized_name": name,
        "name": name,
        "type": kind,
        "widget": {"name": name},
        "link": None,
    }


if __name__ == "__main__":
    sys.exit(main())
