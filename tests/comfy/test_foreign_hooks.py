"""Other packs around the layer: its inputs, its output, its backend, its shape, the whole UNet."""

from __future__ import annotations

import composition
import foreign_patches
import pytest
import reference
import scenes
import torch
from two_subjects import warnings_of


class TestPatchesAroundTheLayer:
    @composition.CASTS
    @pytest.mark.parametrize("place", composition.PLACES)
    def test_changed_keys_and_values_are_those_that_count(self, sdxl, place, cast):
        subject = sdxl.subject()

        def change(query, key, value, options):
            return query, key * 1.3, value.flip(-1) * 0.8

        def alter(model):
            model = model.clone()
            model.set_model_attn2_patch(change)
            return model

        found = composition.sample_bound(sdxl, subject, alter, place, cast=cast)
        expected = foreign_patches.expect(sdxl, subject, foreign_patches.attention, alter, cast)
        assert scenes.relative_difference(found, expected) < composition.TOLERANCE
        without = foreign_patches.expect(sdxl, subject, foreign_patches.attention, cast=cast)
        assert scenes.relative_difference(without, expected) > composition.VISIBLE

    @pytest.mark.parametrize("place", composition.PLACES)
    def test_a_patch_of_the_output_gets_ours_too(self, sdxl, place):
        def alter(model):
            model = model.clone()
            model.set_model_attn2_output_patch(lambda output, options: output * 0.5)
            return model

        composition.assert_composes(sdxl, alter, places=[place])


class TestAttentionOverride:
    """`optimized_attention_override`, as packs that bring another attention backend set it."""

    @staticmethod
    def _override(calls, scale=0.9):
        def alter(model):
            def attend(function, *args, **kwargs):
                calls.append(args[0].shape)
                return scale * function(*args, **kwargs)

            model = model.clone()
            model.model_options["transformer_options"]["optimized_attention_override"] = attend
            return model

        return alter

    @pytest.mark.parametrize("place", composition.PLACES)
    def test_it_sees_the_host_s_attentions_and_no_others(self, sdxl, place):
        ours, hosts = [], []
        found = composition.sample_bound(sdxl, sdxl.subject(), self._override(ours), place)
        plain = foreign_patches.sample_host(sdxl, self._override(hosts))
        assert ours == hosts
        assert scenes.relative_difference(plain, found) > composition.VISIBLE

    @composition.CASTS
    def test_its_result_is_the_base(self, sdxl, cast):
        subject, alter = sdxl.subject(), self._override([])
        found = composition.sample_bound(sdxl, subject, alter, cast=cast)

        def base(query, key, value, options):
            return 0.9 * foreign_patches.attention(query, key, value, options)

        expected = foreign_patches.expect(sdxl, subject, base, alter, cast)
        assert scenes.relative_difference(found, expected) < composition.TOLERANCE


class TestPatchesThatChangeTheShape:
    """There the rows or tokens that were planned for are not the ones that arrive."""

    @staticmethod
    def _widen(model, blocks=("input", "middle", "output")):
        """As attention-couple does: every row several times, with other texts, and one kept."""

        def widen(query, key, value, options):
            if options["block"][0] not in blocks:
                return query, key, value
            return (
                query.repeat(2, 1, 1),
                torch.cat([key, key * 0.5]),
                torch.cat([value, value * 0.5]),
            )

        def narrow(output, options):
            if options["block"][0] not in blocks:
                return output
            return sum(output.chunk(2)) / 2

        model = model.clone()
        model.set_model_attn2_patch(widen)
        model.set_model_attn2_output_patch(narrow)
        return model

    @staticmethod
    def _extend(model):
        """As image prompts do: tokens of their own behind the text's."""

        def extend(query, key, value, options):
            more = torch.full_like(key[:, :4], 0.1)
            return query, torch.cat([key, more], 1), torch.cat([value, more], 1)

        model = model.clone()
        model.set_model_attn2_patch(extend)
        return model

    @pytest.mark.parametrize("place", composition.PLACES)
    @pytest.mark.parametrize("change", ["_widen", "_extend"])
    def test_the_layer_is_the_host_s_and_each_sampling_says_so_once(
        self, sdxl, change, place, caplog
    ):
        alter = getattr(self, change)
        before = alter(sdxl.model) if place == "before" else sdxl.model
        model, clip = sdxl.apply(sdxl.bind(), model=before)
        model = alter(model) if place == "behind" else model
        positive, negative = (
            sdxl.encode(clip, text) for text in (composition.PROMPT, composition.NEGATIVE)
        )
        found = [sdxl.sample(model, positive, negative) for _ in range(2)]
        for each in found:
            assert torch.equal(each, foreign_patches.sample_host(sdxl, alter))
        first, second = warnings_of(caplog)  # one for each sampling
        assert "shape of cross-attention" in first
        assert first == second

    @composition.CASTS
    def test_other_layers_keep_the_subject(self, sdxl, cast):
        subject = sdxl.subject()
        slots, tables = composition.naive_slots(sdxl, subject, cast), cast.naive_tables

        def alter(model):
            return self._widen(model, blocks=("middle",))

        def rows(options, num_rows):
            kinds = options["cond_or_uncond"]
            if num_rows != len(kinds):
                return [{}] * num_rows
            return [slots if kind == 0 else {} for kind in kinds]

        found = composition.sample_bound(sdxl, subject, alter, cast=cast)
        positive, negative = (
            sdxl.encode(sdxl.clip, text) for text in (cast.plain, composition.NEGATIVE)
        )
        naive = reference.with_naive_subjects(sdxl.model, sdxl.sites, rows, tables)
        expected = sdxl.sample(alter(naive), positive, negative)
        assert scenes.relative_difference(found, expected) < composition.TOLERANCE
