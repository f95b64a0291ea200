"""Other packs around the layer: its inputs, its output, its backend, its shape, the whole UNet."""

from __future__ import annotations

import beside
import foreign
import pytest
import reference
import scenes
import torch


class TestPatchesAroundTheLayer:
    @beside.CASTS
    @pytest.mark.parametrize("place", beside.PLACES)
    def test_changed_keys_and_values_are_those_that_count(self, sdxl, place, cast):
        subject = sdxl.subject()

        def change(query, key, value, options):
            return query, key * 1.3, value.flip(-1) * 0.8

        def alter(model):
            model = model.clone()
            model.set_model_attn2_patch(change)
            return model

        found = beside.sample_bound(sdxl, subject, alter, place, cast=cast)
        expected = foreign.expect(sdxl, subject, foreign.attention, alter, cast)
        assert scenes.relative_difference(found, expected) < beside.TOLERANCE
        without = foreign.expect(sdxl, subject, foreign.attention, cast=cast)
        assert scenes.relative_difference(without, expected) > beside.VISIBLE

    @pytest.mark.parametrize("place", beside.PLACES)
    def test_a_patch_of_the_output_gets_ours_too(self, sdxl, place):
        def alter(model):
            model = model.clone()
            model.set_model_attn2_output_patch(lambda output, options: output * 0.5)
            return model

        beside.assert_composes(sdxl, alter, places=[place])


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

    @pytest.mark.parametrize("place", beside.PLACES)
    def test_it_sees_the_host_s_attentions_and_no_others(self, sdxl, place):
        ours, hosts = [], []
        found = beside.sample_bound(sdxl, sdxl.subject(), self._override(ours), place)
        plain = foreign.sample_host(sdxl, self._override(hosts))
        assert ours == hosts
        assert scenes.relative_difference(plain, found) > beside.VISIBLE

    @beside.CASTS
    def test_its_result_is_the_base(self, sdxl, cast):
        subject, alter = sdxl.subject(), self._override([])
        found = beside.sample_bound(sdxl, subject, alter, cast=cast)

        def base(query, key, value, options):
            return 0.9 * foreign.attention(query, key, value, options)

        expected = foreign.expect(sdxl, subject, base, alter, cast)
        assert scenes.relative_difference(found, expected) < beside.TOLERANCE


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

    @pytest.mark.parametrize("place", beside.PLACES)
    @pytest.mark.parametrize("change", ["_widen", "_extend"])
    def test_the_layer_is_the_host_s_and_one_warning_says_so(self, sdxl, change, place, caplog):
        alter = getattr(self, change)
        before = alter(sdxl.model) if place == "before" else sdxl.model
        model, clip = sdxl.apply(sdxl.bind(), model=before)
        model = alter(model) if place == "behind" else model
        positive, negative = (sdxl.encode(clip, text) for text in (beside.PROMPT, beside.NEGATIVE))
        found = [sdxl.sample(model, positive, negative) for _ in range(2)]
        for each in found:
            assert torch.equal(each, foreign.sample_host(sdxl, alter))
        warnings = [each for each in caplog.messages if "Nested Attention" in each]
        assert len(warnings) == 1
        assert "shape of cross-attention" in warnings[0]

    @beside.CASTS
    def test_other_layers_keep_the_subject(self, sdxl, cast):
        subject = sdxl.subject()
        slots, tables = beside.naive_slots(sdxl, subject, cast), cast.naive_tables

        def alter(model):
            return self._widen(model, blocks=("middle",))

        def rows(options, num_rows):
            kinds = options["cond_or_uncond"]
            if num_rows != len(kinds):
                return [{}] * num_rows
            return [slots if kind == 0 else {} for kind in kinds]

        found = beside.sample_bound(sdxl, subject, alter, cast=cast)
        positive, negative = (
            sdxl.encode(sdxl.clip, text) for text in (cast.plain, beside.NEGATIVE)
        )
        naive = reference.with_naive_subjects(sdxl.model, sdxl.sites, rows, tables)
        expected = sdxl.sample(alter(naive), positive, negative)
        assert scenes.relative_difference(found, expected) < beside.TOLERANCE


class TestFunctionsAroundTheUNet:
    """`model_function_wrapper`, with which packs split a batch or a picture."""

    @staticmethod
    def _wrapped(function):
        def alter(model):
            model = model.clone()
            model.set_model_unet_function_wrapper(function)
            return model

        return alter

    @staticmethod
    def _row_by_row(apply_model, call):
        rows = range(len(call["input"]))
        return torch.cat(
            [
                apply_model(
                    call["input"][row : row + 1],
                    call["timestep"][row : row + 1],
                    **{
                        name: each[row : row + 1] if isinstance(each, torch.Tensor) else each
                        for name, each in call["c"].items()
                    },
                )
                for row in rows
            ]
        )

    @staticmethod
    def _tiles(apply_model, call):
        """Left and right half, one behind the other; knows only of what every model has."""
        width = call["input"].shape[-1] // 2
        tiles = torch.cat(call["input"].split(width, dim=-1))
        conditions = {
            name: each.repeat(2, *[1] * (each.ndim - 1)) if name in ("c_crossattn", "y") else each
            for name, each in call["c"].items()
        }
        result = apply_model(tiles, call["timestep"].repeat(2), **conditions)
        return torch.cat(result.chunk(2), dim=-1)

    @beside.CASTS
    @pytest.mark.parametrize("place", beside.PLACES)
    def test_rows_run_one_by_one(self, sdxl, place, cast):
        subject, alter = sdxl.subject(), self._wrapped(self._row_by_row)
        found = beside.sample_bound(sdxl, subject, alter, place, cast=cast, batch=2)
        together = beside.sample_bound(sdxl, subject, cast=cast, batch=2)
        assert scenes.relative_difference(found, together) < 1e-5

    def test_tiles_are_the_host_s_and_one_warning_says_so(self, sdxl, caplog):
        alter = self._wrapped(self._tiles)
        found = beside.sample_bound(sdxl, sdxl.subject(), alter)
        assert torch.equal(found, foreign.sample_host(sdxl, alter))
        warnings = [each for each in caplog.messages if "Nested Attention" in each]
        assert len(warnings) == 1
        assert "4 rows where the prompts have 2" in warnings[0]

    def test_a_mask_whose_rows_are_not_split_is_the_host_and_one_warning_says_so(
        self, sdxl, caplog
    ):
        alter = self._wrapped(self._row_by_row)
        masked = {"mask": torch.rand(1, 9, 9)}
        found = beside.sample_bound(sdxl, sdxl.subject(), alter, binding=masked)
        assert torch.equal(found, foreign.sample_host(sdxl, alter))
        warnings = [each for each in caplog.messages if "Nested Attention" in each]
        assert len(warnings) == 1
        assert "1 rows where the prompts have 2" in warnings[0]
