"""Base models through diffusers, from their names or files. The only file that imports it."""

# diffusers and transformers are typed in part only; what leaves this file is typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPVisionModelWithProjection

from ..checkpoint.safetensors_file import read_header
from .disk_cache import DiskCache, ModelDigests, key_of
from .errors import TrainingError
from .flow_models import FLOW_FAMILIES, FlowFamily, family_of_pipeline
from .flow_models.cached import CachedEncoding, Part
from .flow_models.encoding import VAE_DTYPE, Encoding, PipelineEncoding
from .flow_models.model import TransformerModel
from .noise_schedule import read_schedule
from .unet_model import UNetModel


def load_base_model(
    base: str,
    image_encoder: str,
    base_config: str = "",
    dtype: torch.dtype = torch.float32,
    guidance: float = 1.0,
    cache_folder: Path | None = None,
) -> UNetModel | TransformerModel:
    """The base model and the image encoder, on the CPU; UNets in float32.

    Args:
        base: a checkpoint file (`.safetensors`), a folder in diffusers' layout, or a model's name on
            the hub.
        image_encoder: a folder or a hub name of a CLIP vision model with projection.
        base_config: for a checkpoint file on a machine without network, a folder with the
            configurations of the same family's pipeline in diffusers' layout.
        dtype: of a transformer and its text encoders, too large to be held in float32 for nothing.
        guidance: that a guidance-distilled model is told.
        cache_folder: of captions and pictures that a transformer's text encoders and VAE have
            encoded; these are then loaded where something is missing, and not before.

    Raises:
        TrainingError: they cannot be loaded, or are of another family.
    """
    try:
        description, pipeline = _load_pipeline(base, base_config, dtype, cache_folder is not None)
        vision = CLIPVisionModelWithProjection.from_pretrained(image_encoder)
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(
            f"Training: the base model '{base}' or the image encoder '{image_encoder}' cannot be "
            f"loaded ({error}). Expected: a .safetensors checkpoint of SD1.5 or SDXL, a folder in "
            "diffusers' layout or a hub name; and a folder or hub name of a CLIP vision model."
        ) from error
    if description is None:
        if cache_folder is not None:
            raise TrainingError(
                f"cache is disk, expected none: '{base}' is a UNet, whose captions and pictures are "
                "not kept."
            )
        return UNetModel(pipeline, vision)
    encoding = None
    if cache_folder is not None:
        encoding = _cached_encoding(description, base, dtype, DiskCache(cache_folder))
    schedule = read_schedule(pipeline.scheduler)
    return TransformerModel(description, pipeline, vision, schedule, guidance, encoding)


def _load_pipeline(
    base: str, base_config: str, dtype: torch.dtype, is_cached: bool
) -> tuple[FlowFamily | None, Any]:
    """Its family's description, if it is a transformer, and the pipeline.

    Args:
        is_cached: whether a transformer's text encoders and VAE are left out.
    """
    if Path(base).is_file():
        return None, _load_checkpoint(base, base_config)
    parts: Any = DiffusionPipeline.load_config(base)
    name = str(parts.get("_class_name"))
    description = family_of_pipeline(name)
    if description is not None:
        problem = description.problem(parts)
        if problem:
            raise TrainingError(f"Training: the base model '{base}' {problem}")
        left_out = [*_readers(parts), "vae"] if is_cached else []
        return description, _load_without(base, dtype, left_out)
    if "unet" not in parts:
        known = ", ".join(["SD1.5", "SDXL", *(each.label for each in FLOW_FAMILIES)])
        raise TrainingError(
            f"Training: the base model '{base}' is a {name}, whose layers this trainer does not know. "
            f"Expected a text-to-image pipeline of {known}."
        )
    return None, DiffusionPipeline.from_pretrained(base)


def _load_without(base: str, dtype: torch.dtype, left_out: Iterable[str]) -> Any:
    dtypes = {"default": dtype, "vae": VAE_DTYPE}
    parts: dict[str, Any] = dict.fromkeys(left_out)
    index: Any = DiffusionPipeline.load_config(base)
    if "safety_checker" in index:
        # Cosmos' pipeline insists on one; training asks the transformer alone, which has none.
        parts["safety_checker"] = torch.nn.Identity()
    return DiffusionPipeline.from_pretrained(base, dtype=dtypes, **parts)


def _readers(parts: Mapping[str, Any]) -> list[str]:
    """The parts of a pipeline that read text."""
    return sorted(name for name in parts if name.startswith(("text_encoder", "tokenizer")))


def _cached_encoding(
    description: FlowFamily, base: str, dtype: torch.dtype, cache: DiskCache
) -> CachedEncoding:
    """What encodes captions and pictures of a transformer, loaded where the cache lacks something."""
    folder = Path(base if Path(base).is_dir() else DiffusionPipeline.download(base))
    parts: Any = DiffusionPipeline.load_config(folder)
    readers = _readers(parts)
    digests = ModelDigests(cache.folder)

    def load(part: Part) -> Encoding:
        others = ["vae"] if part == "texts" else readers
        return PipelineEncoding(description, _load_without(base, dtype, ["transformer", *others]))

    keys: dict[Part, str] = {
        "texts": key_of(description.base, digests.of(folder, readers)),
        "pictures": key_of(description.base, digests.of(folder, ["vae"])),
    }
    return CachedEncoding(cache, load, keys, dtype)


def _load_checkpoint(base: str, base_config: str) -> Any:
    options = {"config": base_config, "local_files_only": True} if base_config else {}
    # The two classes read each other's files without complaint, into a wrong model.
    if any(name.startswith("conditioner.") for name in read_header(base).tensors):
        return StableDiffusionXLPipeline.from_single_file(base, **options)
    return StableDiffusionPipeline.from_single_file(base, safety_checker=None, **options)
