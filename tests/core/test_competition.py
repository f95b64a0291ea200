"""Who owns which pixel: what two subjects' maps say, and masks that win over them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import random
from torch import Tensor

from nested_core import competition


def _blob(height: int, width: int, down: float, across: float, spread: float = 0.12) -> Tensor:
    """The contrast of a map with one peak; places and spread as shares of the sides."""
    rows = (torch.arange(height) + 0.5) / height - down
    columns = (torch.arange(width) + 0.5) / width - across
    squares = rows[:, None].square() + columns.square()
    return competition.contrast(torch.exp(-0.5 * squares / spread**2) + 0.01)


class TestContrast:
    def test_is_the_logarithm_against_the_geometric_mean(self):
        seen = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
        mean = math.exp(sum(math.log(each) for each in (1, 2, 4, 8)) / 4)
        torch.testing.assert_close(competition.contrast(seen), (seen / mean).log())

    def test_does_not_hear_how_much_attention_there_is_in_all(self):
        seen = random(3, 5, 7).exp()
        torch.testing.assert_close(
            competition.contrast(seen / 100), competition.contrast(seen), rtol=1e-5, atol=1e-5
        )

    def test_each_map_is_by_itself(self):
        maps = random(2, 3, 5, 7).exp()
        alone = torch.stack([torch.stack([competition.contrast(m) for m in row]) for row in maps])
        torch.testing.assert_close(competition.contrast(maps), alone)

    def test_no_attention_has_no_contrast(self):
        nothing = torch.zeros(2, 4, 4)
        torch.testing.assert_close(competition.contrast(nothing), nothing)
        one = torch.zeros(4, 4)
        one[1, 2] = 0.5
        found = competition.contrast(one)
        assert bool(found.isfinite().all())
        assert int(found.argmax()) == 4 + 2

    def test_half_precision_is_read_in_full(self):
        assert competition.contrast(random(4, 4).exp().half()).dtype == torch.float32


class TestComparability:
    def test_is_the_attention_to_the_least_seen_subject(self):
        seen = torch.stack([torch.full((2, 3), 0.4), torch.full((2, 3), 0.1)])
        seen[1, 0, 0] = 0.7  # the mean counts, not the least pixel
        assert competition.comparability(seen).shape == (1, 1, 1)
        least = (5 * 0.1 + 0.7) / 6
        assert competition.comparability(seen).item() == pytest.approx(least**0.5)

    def test_is_nothing_where_a_subject_is_not_seen(self):
        seen = torch.stack([torch.ones(2, 4, 4), torch.zeros(2, 4, 4)], dim=1)
        assert torch.equal(competition.comparability(seen), torch.zeros(2, 1, 1, 1))

    def test_each_row_is_by_itself(self):
        seen = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(1))
        alone = torch.stack([competition.comparability(row) for row in seen])
        torch.testing.assert_close(competition.comparability(seen), alone)


class TestContested:
    FIRST_OWNS = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)

    def test_level_pixels_are_open_and_decided_ones_are_not(self):
        evidence = torch.zeros(3, 2, 2)
        evidence[0, 0, 0], evidence[0, 1, 1] = 5.0, 0.1
        found = competition.contested(evidence, self.FIRST_OWNS.expand(3, 2, 2))
        assert found.shape == (1, 2, 2)
        assert found[0, 0, 1] == 1.0
        assert float(found[0, 0, 0]) < 1e-6
        assert float(found[0, 1, 1]) > 0.99

    def test_the_best_of_the_others_counts_not_the_last(self):
        evidence = torch.tensor([2.0, 1.9, -9.0]).view(3, 1, 1)
        assert competition.contested(evidence, self.FIRST_OWNS).item() > 0.99

    def test_a_pixel_that_does_not_listen_to_its_owner_is_decided_sooner(self):
        evidence = torch.tensor([0.4, 0.0, 0.0]).view(3, 1, 1)
        owned = [competition.contested(evidence, self.FIRST_OWNS.roll(n, 0)).item() for n in (0, 1)]
        assert owned[0] > 0.8
        assert owned[1] < 0.1

    def test_a_pixel_of_two_owners_is_open_as_far_as_it_is_to_each(self):
        evidence = torch.tensor([0.4, 0.0, 0.0]).view(3, 1, 1)
        first, second = (self.FIRST_OWNS.roll(n, 0) for n in (0, 1))
        apart = [competition.contested(evidence, owner) for owner in (first, second)]
        both = competition.contested(evidence, 0.25 * first + 0.75 * second)
        torch.testing.assert_close(both, 0.25 * apart[0] + 0.75 * apart[1])


class TestShares:
    @given(
        batch=st.sampled_from([(), (1,), (3,), (2, 2)]),
        subjects=st.integers(1, 5),
        height=st.integers(1, 20),
        width=st.integers(1, 20),
        scale=st.sampled_from([0.0, 1e-4, 1.0, 3.0]),
    )
    @settings(max_examples=60, deadline=None)
    def test_sum_to_one(self, batch, subjects, height, width, scale):
        found = competition.shares(scale * random(*batch, subjects, height, width))
        assert found.shape == (*batch, subjects, height, width)
        assert bool((found >= 0).all())
        torch.testing.assert_close(found.sum(dim=-3), torch.ones(*batch, height, width))

    @pytest.mark.parametrize("number", [2, 3, 5])
    def test_equal_evidence_is_divided_equally(self, number):
        found = competition.shares(_blob(12, 9, 0.3, 0.6).expand(number, -1, -1))
        torch.testing.assert_close(found, torch.full((number, 12, 9), 1 / number))

    @pytest.mark.parametrize("size", [(8, 8), (1, 9), (1, 1)])
    def test_evidence_without_news_is_divided_equally(self, size):
        constant = torch.tensor([3.1, -0.7])[:, None, None].expand(-1, *size)
        rounding = 1e-7 * random(2, *size)
        found = competition.shares(constant + rounding)
        torch.testing.assert_close(found, torch.full((2, *size), 0.5), rtol=0, atol=0.02)

    @pytest.mark.parametrize("size", [(16, 16), (12, 40), (33, 9)])
    @pytest.mark.parametrize("noise", [0.0, 0.5])
    def test_find_the_sides_of_two_subjects(self, size, noise):
        evidence = torch.stack([_blob(*size, 0.5, 0.2), _blob(*size, 0.5, 0.8)])
        left, right = competition.shares(evidence + noise * random(2, *size))
        middle = size[1] // 2
        assert float(left[:, : middle - 1].mean()) > 0.95
        assert float(right[:, middle + 1 :].mean()) > 0.95

    def test_find_who_is_above_whom(self):
        top, bottom = competition.shares(
            torch.stack([_blob(20, 14, 0.2, 0.5), _blob(20, 14, 0.8, 0.5)])
        )
        assert float(top[:8].min()) > 0.95
        assert float(bottom[12:].min()) > 0.95

    def test_find_three_in_a_row(self):
        evidence = torch.stack([_blob(10, 30, 0.5, place) for place in (0.5, 1 / 6, 5 / 6)])
        found = competition.shares(evidence).argmax(dim=0)
        assert set(found[:, 3:7].flatten().tolist()) == {1}
        assert set(found[:, 13:17].flatten().tolist()) == {0}
        assert set(found[:, 23:27].flatten().tolist()) == {2}

    def test_a_word_with_a_flat_map_keeps_its_side(self):
        evidence = torch.stack([3 * _blob(16, 16, 0.5, 0.2), 0.3 * _blob(16, 16, 0.5, 0.8)])
        left, right = competition.shares(evidence)
        assert float(left[:, :6].mean()) > 0.95
        assert float(right[:, 10:].mean()) > 0.95

    def test_a_word_that_reaches_further_is_not_given_both(self):
        """A wide map lies over its neighbour's too, and against a wide sky both are high."""
        wide = _blob(16, 16, 0.5, 0.3, spread=0.4)
        narrow = 0.85 * wide + 0.15 * _blob(16, 16, 0.5, 0.6)
        left, right = competition.shares(torch.stack([wide, narrow]))
        assert float(left[5:11, 3:6].mean()) > 0.95
        assert float(right[6:10, 8:11].mean()) > 0.95

    def test_head_and_feet_are_of_one(self):
        """Two figures, of which one word likes heads and the other feet, more than either of them."""
        figures = _blob(16, 16, 0.5, 0.2, spread=0.2).maximum(_blob(16, 16, 0.5, 0.8, spread=0.2))
        slope = torch.linspace(0.3, -0.3, 16)
        side = torch.linspace(0.1, -0.1, 16)
        evidence = torch.stack([figures + slope[:, None] + side, figures - slope[:, None] - side])
        left, right = competition.shares(evidence)
        assert float(left[2:14, 1:6].mean()) > 0.95
        assert float(right[2:14, 10:15].mean()) > 0.95

    def test_find_who_is_above_whom_though_the_maps_lean_sideways(self):
        lean = torch.linspace(0.8, -0.8, 14)
        evidence = [_blob(20, 14, 0.2, 0.5) + lean, _blob(20, 14, 0.8, 0.5) - lean]
        top, bottom = competition.shares(torch.stack(evidence))
        assert float(top[1:8, 3:11].mean()) > 0.95
        assert float(bottom[12:19, 3:11].mean()) > 0.95

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_a_large_and_a_small_subject_keep_their_places(self, order):
        large, small = _blob(24, 24, 0.55, 0.35, spread=0.25), _blob(24, 24, 0.8, 0.85, spread=0.08)
        found = competition.shares(torch.stack([(large, small)[each] for each in order]))
        of_large, of_small = found[order[0]], found[order[1]]
        assert float(of_large[7:19, 3:13].mean()) > 0.95
        assert float(of_small[18:21, 19:22].mean()) > 0.95

    def test_each_row_is_by_itself(self):
        rows = random(4, 3, 9, 7)
        alone = torch.stack([competition.shares(row) for row in rows])
        torch.testing.assert_close(competition.shares(rows), alone)


class TestMasks:
    EVIDENCE = random(2, 3, 6, 8)
    LEFT = torch.zeros(2, 6, 8).index_fill(2, torch.arange(4), 1.0)

    def _owned(self, *masks: Tensor | None) -> Tensor:
        return competition.ownership(self.EVIDENCE, masks)[0]

    def _among(self, *free: bool) -> Tensor:
        among = torch.tensor(free).view(3, 1, 1).expand(3, 6, 8)
        return competition.shares(self.EVIDENCE, among.expand(2, -1, -1, -1))

    def test_without_masks_the_evidence_decides(self):
        found = competition.shares(self.EVIDENCE)
        expected = found, competition.contested(self.EVIDENCE, found)
        for masks in (None, [None] * 3):
            owned = competition.ownership(self.EVIDENCE, masks)
            assert all(torch.equal(*pair) for pair in zip(owned, expected, strict=True))

    def test_a_mask_wins_and_the_free_divide_the_rest_as_found(self):
        found = self._owned(None, self.LEFT, None)
        assert torch.equal(found[:, 1], self.LEFT)
        assert torch.equal(found[:, ::2, :, :4], torch.zeros(2, 2, 6, 4))
        free = self._among(True, False, True)
        torch.testing.assert_close(found[..., 4:], free[..., 4:])

    def test_part_of_a_mask_leaves_the_other_part_to_the_free(self):
        found = self._owned(0.25 * self.LEFT, None, None)
        torch.testing.assert_close(found[:, 0], 0.25 * self.LEFT)
        torch.testing.assert_close(found.sum(dim=1), torch.ones(2, 6, 8))

    def test_masks_that_touch_do_not_overlap(self):
        soft = 0.3 + 0.4 * self.LEFT
        found = self._owned(soft, 1.0 - soft, None)
        torch.testing.assert_close(found[:, 0], soft)
        torch.testing.assert_close(found[:, 1], 1.0 - soft)

    def test_where_masks_overlap_the_evidence_divides_among_them(self):
        whole = torch.ones(2, 6, 8)
        found = self._owned(self.LEFT, whole, None)
        assert torch.equal(found[:, 1, :, 4:], whole[..., 4:])
        expected = self._among(True, True, False)
        torch.testing.assert_close(found[..., :4], expected[..., :4])
        assert float((expected[:, 0, :, :4] - 0.5).abs().mean()) > 0.2

    def test_only_what_two_claim_is_divided(self):
        most, some = (torch.full((2, 6, 8), each) for each in (0.95, 0.1))
        found = self._owned(most, some, None)
        divided = self._among(True, True, False)
        torch.testing.assert_close(found[:, 0], 0.9 + 0.05 * divided[:, 0])
        torch.testing.assert_close(found[:, 1], 0.05 + 0.05 * divided[:, 1])

    def test_a_subject_that_does_not_claim_a_pixel_is_not_given_it(self):
        """However sure the maps are: outside her mask Anna owns nothing."""
        evidence = torch.stack([_blob(6, 8, 0.5, 0.8), *[_blob(6, 8, 0.5, 0.2)] * 2])
        masks = [self.LEFT[0], None, None]
        found = competition.ownership(evidence, masks)[0]
        torch.testing.assert_close(found[0], self.LEFT[0])
        masks = [self.LEFT[0], torch.ones(6, 8), torch.ones(6, 8)]
        found = competition.ownership(evidence, masks)[0]
        assert torch.equal(found[0, :, 4:], torch.zeros(6, 4))
        torch.testing.assert_close(found.sum(dim=0), torch.ones(6, 8))

    def test_where_all_are_masked_the_rest_is_nobodys(self):
        masks = [0.3 * self.LEFT, 0.2 * self.LEFT, torch.zeros(2, 6, 8)]
        torch.testing.assert_close(self._owned(*masks), torch.stack(masks, dim=1))

    def test_the_masked_are_not_among_those_who_divide_the_rest(self):
        found = self._owned(None, torch.zeros(2, 6, 8), None)
        assert torch.equal(found[:, 1], torch.zeros(2, 6, 8))
        torch.testing.assert_close(found.sum(dim=1), torch.ones(2, 6, 8))

    def test_before_anything_was_seen_those_who_claim_a_pixel_are_level(self):
        masks = [self.LEFT, torch.ones(2, 6, 8), torch.zeros(2, 6, 8)]
        found, is_open = competition.ownership(torch.zeros(2, 3, 6, 8), masks)
        torch.testing.assert_close(found[:, 0], 0.5 * self.LEFT)
        assert torch.equal(is_open, torch.ones(2, 1, 6, 8))

    def test_what_is_painted_is_not_in_doubt_and_what_two_claim_may_be(self):
        evidence = torch.zeros(2, 3, 6, 8)
        evidence[:, 0] = 5.0  # every pixel has decided, and for Anna
        free = competition.ownership(evidence)[1]
        assert float(free.max()) < 1e-6
        one = competition.ownership(evidence, [None, self.LEFT, None])[1]
        assert torch.equal(one, torch.ones(2, 1, 6, 8))
        whole = torch.ones(2, 6, 8)
        two = competition.ownership(evidence, [whole, self.LEFT, None])[1][:, 0]
        torch.testing.assert_close(two, 1.0 - self.LEFT)
        unseen = competition.ownership(evidence, [None, whole, self.LEFT])[1]
        torch.testing.assert_close(unseen, torch.ones(2, 1, 6, 8))
