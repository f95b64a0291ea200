"""A family is what a model's sites mean; the rest works with one that it has never heard of."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import nested_core.families
from nested_core.binding import bind
from nested_core.checkpoint import describe, encoder_hash, load_encoder, save_encoder
from nested_core.config import EncoderConfig
from nested_core.encoder import Encoder
from nested_core.errors import CheckpointError, SiteError
from nested_core.families import DEFAULT_FAMILY, FAMILIES, family_named
from nested_core.families.family import Family, Grid
from nested_core.families.unet import UNET
from nested_core.families.unet_sites import AttentionSite
from nested_core.maps import RecordPlan
from nested_core.sites import SiteSelector

# ---- a second family: joint attention in numbered layers, some of which have two sites


@dataclass(frozen=True)
class _Layer:
    """Opaque: neither a tuple nor in any order of its own."""

    path: str

    @property
    def text(self) -> str:
        return f"@{self.path}"


@dataclass(frozen=True)
class _Term:
    path: str
    negated: bool = False

    def matches(self, site: Any) -> bool:
        return site.path.startswith(self.path)

    def unmatched(self, sites: Iterable[Any]) -> str:
        return f"no layer {self.path}"


class _JointFamily(Family[_Layer]):
    name = "joint"
    example_path = "double_block.0"
    layouts = ()
    tokenizers = ("t5",)

    def sites_of(self, module_names: Iterable[str]) -> dict[_Layer, str]:
        return {self.site(name): name for name in module_names}

    def site(self, path: str) -> _Layer:
        if not path.startswith(("double_block.", "single.")):
            raise SiteError(f"'{path}' is no layer")
        return _Layer(path)

    def parse_sites(self, text: str) -> SiteSelector:
        return SiteSelector(tuple(_Term(term) for term in text.split()))

    def in_network_order(self, sites: Iterable[_Layer]) -> list[_Layer]:
        return sorted(sites, key=lambda site: site.path, reverse=True)  # as no file stores them

    def describe_sites(self, sites: Iterable[_Layer]) -> str:
        return " then ".join(site.text for site in self.in_network_order(sites))

    def text_keys(self, num_keys: int, num_text_tokens: int) -> slice:
        return slice(0, num_text_tokens)

    def pixel_queries(self, num_queries: int, num_text_tokens: int, num_pixels: int) -> slice:
        return slice(num_text_tokens, num_queries)

    def grids(self, latent_size: Grid) -> list[Grid]:
        frames, height, width = latent_size
        return [Grid(frames, -(-height // 2), -(-width // 2))]

    def grid_of(
        self, num_queries: int, told: Sequence[int] | None, latent_size: Grid | None
    ) -> Grid:
        return Grid(1, 1, num_queries) if latent_size is None else self.grids(latent_size)[0]

    def num_characters(self, tokenizer: str, piece: str) -> int:
        return len(piece)


_DIMS = {_Layer("single.10.a"): 16, _Layer("double_block.2"): 8, _Layer("single.10.b"): 24}


@pytest.fixture
def joint(monkeypatch: pytest.MonkeyPatch, encoder_config: EncoderConfig) -> EncoderConfig:
    """The configuration of an encoder of the second family, which is known for this test."""
    monkeypatch.setitem(FAMILIES, "joint", _JointFamily())
    return replace(encoder_config, family="joint")


@pytest.fixture
def loaded(joint: EncoderConfig, make_encoder: Any, tmp_path: Path) -> tuple[Encoder, Encoder]:
    """An encoder of the second family, and what its file gives."""
    made = make_encoder(joint, _DIMS)
    save_encoder(made, tmp_path / "joint.safetensors")
    return made, load_encoder(tmp_path / "joint.safetensors")


def test_a_file_of_another_family_gives_the_encoder_that_was_saved(
    loaded: tuple[Encoder, Encoder], tmp_path: Path
):
    made, read = loaded
    assert isinstance(read.family, _JointFamily)
    assert list(read.site_dims.items()) == [
        (_Layer("single.10.b"), 24),
        (_Layer("single.10.a"), 16),
        (_Layer("double_block.2"), 8),
    ]
    assert "sites.single.10.a.to_k.weight" in load_file(tmp_path / "joint.safetensors")
    assert encoder_hash(read) == encoder_hash(made)
    assert "sites          3: @single.10.b then @single.10.a then @double_block.2" in list(
        describe(tmp_path / "joint.safetensors")
    )


def test_its_encoder_projects_at_opaque_sites(loaded: tuple[Encoder, Encoder]):
    made, read = loaded
    tokens = torch.randn(2, 4, 24, generator=torch.Generator().manual_seed(0))
    for site, width in _DIMS.items():
        key, value = read.project(site, tokens)
        assert key.shape == (2, 4, width)
        weight = made.state_dict()[f"sites.{site.path}.to_v.weight"]
        assert torch.allclose(value, tokens @ weight.T, atol=1e-6)


def test_a_binding_reads_its_sites_in_the_grammar_of_the_encoders_family(
    loaded: tuple[Encoder, Encoder], make_subject: Any
):
    encoder = loaded[1]
    bound = bind(make_subject(encoder), sites="single.10 double_block.2")
    assert bound.sites.select(encoder.site_dims) == set(_DIMS)
    only = bind(make_subject(encoder), sites="single.10.b").sites
    assert only.select(encoder.site_dims) == {_Layer("single.10.b")}
    with pytest.raises(SiteError, match="no layer single"):
        bind(make_subject(encoder), sites="single.3").sites.select(encoder.site_dims)
    assert RecordPlan.from_text(sites="double_block", family=encoder.family).sites.select(
        encoder.site_dims
    ) == {_Layer("double_block.2")}


def test_a_name_that_is_none_of_the_familys_does_not_belong_in_its_file(
    joint: EncoderConfig, make_encoder: Any, tmp_path: Path
):
    path = tmp_path / "mixed.safetensors"
    save_encoder(make_encoder(joint, _DIMS), path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["sites.output.0.4.to_k.weight"] = tensors["sites.double_block.2.to_k.weight"].clone()
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match=r"do not belong here.*sites\.output\.0\.4"):
        load_encoder(path)


# ---- which family a file is of


def test_files_of_the_first_family_do_not_name_it(make_encoder: Any, encoder_config: EncoderConfig):
    assert make_encoder().family is UNET is DEFAULT_FAMILY
    assert "family" not in json.loads(encoder_config.to_json())
    named = json.dumps(json.loads(encoder_config.to_json()) | {"family": "unet"})
    assert EncoderConfig.from_json(named, "file") == encoder_config


@pytest.mark.usefixtures("joint")
def test_another_family_is_named_in_the_configuration(joint: EncoderConfig):
    assert json.loads(joint.to_json())["family"] == "joint"
    assert EncoderConfig.from_json(joint.to_json(), "file") == joint


@pytest.mark.parametrize("family", ["flux9", "", None, 3, ["unet"]])
def test_an_unknown_family_is_refused(encoder_config: EncoderConfig, family: Any):
    text = json.dumps(json.loads(encoder_config.to_json()) | {"family": family})
    with pytest.raises(
        CheckpointError,
        match=r"^anna\.safetensors: config\.family is .*, expected one of unet, flux, .*, wan\. A newer",
    ):
        EncoderConfig.from_json(text, "anna.safetensors")


def test_an_encoder_of_an_unknown_family_is_not_built(
    encoder_config: EncoderConfig, few_site_dims: Mapping[AttentionSite, int]
):
    with pytest.raises(
        CheckpointError, match=r"'flux9': unknown, expected one of unet, flux, .*, wan\. A newer"
    ):
        Encoder(replace(encoder_config, family="flux9"), few_site_dims)
    assert family_named("unet") is UNET


# ---- the UNets


@pytest.mark.parametrize("wrapper", ["", "_orig_mod."])
def test_both_libraries_names_of_a_unets_modules_give_the_same_sites(wrapper: str):
    diffusers = {
        f"{wrapper}down_blocks.1.attentions.1.transformer_blocks.0.attn2": "d5.0",
        "mid_block.attentions.0.transformer_blocks.3.attn2": "m0.3",
        "up_blocks.0.attentions.2.transformer_blocks.1.attn2": "u2.1",
    }
    comfyui = {
        f"{wrapper}input_blocks.5.1.transformer_blocks.0.attn2": "d5.0",
        "middle_block.1.transformer_blocks.3.attn2": "m0.3",
        "output_blocks.2.1.transformer_blocks.1.attn2": "u2.1",
    }
    for names in (diffusers, comfyui):
        others = ["", "conv_in", *(name.replace("attn2", "attn1") for name in names)]
        others += [f"{name}.to_k" for name in names]
        found = UNET.sites_of([*others, *names])
        assert {name: site.text for site, name in found.items()} == names


def test_modules_of_no_unet_are_refused():
    with pytest.raises(SiteError, match=r"^0 cross-attention layers .* Use a base model of these"):
        UNET.sites_of(["double_blocks.0.img_attn", "attn2"])


def test_all_keys_of_a_unet_are_text_and_all_queries_pixels():
    assert list(range(80))[UNET.text_keys(77, 77)] == list(range(77))
    # A text that says every token twice arrives as one that was planned twice as long.
    assert UNET.text_keys(77, 154) == slice(0, 77)
    assert UNET.pixel_queries(4096, 77, 4096) == slice(0, 4096)


def test_a_unets_grids_halve_and_round_up_each_frame():
    assert UNET.grids(Grid(1, 5, 9)) == [(1, 5, 9), (1, 3, 5), (1, 2, 3), (1, 1, 2), (1, 1, 1)]
    assert UNET.grids(Grid(3, 4, 2)) == [(3, 4, 2), (3, 2, 1), (3, 1, 1)]
    assert UNET.grids(Grid(1, 1, 1)) == [(1, 1, 1)]


@pytest.mark.parametrize(
    ("num_queries", "told", "latent_size", "grid"),
    [
        (15, [2, 320, 3, 5], Grid(1, 5, 9), (1, 3, 5)),
        (15, None, Grid(1, 5, 9), (1, 3, 5)),
        (15, torch.Size([2, 320, 5, 3]), Grid(1, 5, 9), (1, 5, 3)),
        (14, None, Grid(1, 5, 9), (1, 1, 14)),
        (15, None, None, (1, 1, 15)),
    ],
)
def test_the_grid_is_what_is_told_or_what_halving_gives(
    num_queries: int, told: Sequence[int] | None, latent_size: Grid | None, grid: Grid
):
    assert UNET.grid_of(num_queries, told, latent_size) == grid


def test_a_site_sees_the_whole_latent_or_a_tile_of_it():
    planned, tile = Grid(1, 8, 8), Grid(1, 3, 4)
    assert UNET.is_whole(tile, planned, planned)
    assert not UNET.is_whole(Grid(1, 4, 4), tile, planned)
    assert UNET.is_whole(Grid(1, 4, 4), None, planned)
    assert not UNET.is_whole(tile, None, planned)
    assert UNET.is_whole(tile, tile, None)


def test_a_clip_token_covers_the_letters_of_its_piece():
    assert [UNET.num_characters("l", piece) for piece in ("per", "son</w>", "!</w>")] == [3, 3, 1]


@pytest.mark.parametrize("text", ["d0", "u9"])
def test_a_selector_that_finds_nothing_tells_how_others_count(
    sdxl_site_dims: Mapping[AttentionSite, int], text: str
):
    with pytest.raises(SiteError, match=r"blocks that have attention: their d0 is d4 here\.$"):
        UNET.parse_sites(text).select(sdxl_site_dims)


def test_a_unet_without_attention_in_its_input_has_no_such_hint():
    with pytest.raises(SiteError, match=r"It has m0\.0\. Use one of those, .* of them\.$"):
        UNET.parse_sites("d0").select([AttentionSite("middle", 0, 0)])


def test_known_unets_are_told_by_their_sites_and_widths(
    sdxl_site_dims: Mapping[AttentionSite, int],
):
    assert UNET.base_of(sdxl_site_dims, 2048) == "sdxl"
    one = {AttentionSite("middle", 0, 0): 8}
    assert [UNET.base_of(one, width) for width in (2048, 768, 24)] == ["sdxl", "sd15", "unknown"]


# ---- the seam itself


def test_families_know_nothing_of_files_maps_and_training():
    folder = Path(nested_core.families.__file__).parent
    imported = {
        node.module
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level == 2
    }
    assert imported == {"errors", "sites", "tensor_names"}


def test_nothing_that_serves_every_model_names_the_unets_family():
    root = Path(nested_core.families.__file__).parents[1]
    told = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if path.parent.name != "families" and "families.unet" in path.read_text("utf-8")
    }
    assert told == {str(Path("training", "unet_model.py"))}
