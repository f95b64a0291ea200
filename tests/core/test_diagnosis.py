"""Why a subject did not act: words that were meant, and sentences for people."""

from __future__ import annotations

import unicodedata

import pytest

from nested_core import diagnosis


class TestUnknownWords:
    @pytest.mark.parametrize(
        "text, tokens, expected",
        [
            ("a <anna> in a park", ["<anna>"], []),
            ("a <Anna> in a park", ["<anna>"], ["<Anna>"]),
            ("<anna> and <rex>, <rex> again", ["<anna>"], ["<rex>"]),
            ("a <lora:pixel:0.8> picture", ["<anna>"], []),  # another pack's syntax
            ("3 < 4 and 5 > 2", ["<anna>"], []),
            ("<<anna>>", ["<anna>"], []),
            ("a photo", [], []),
            ("<a b>", [], []),
            (unicodedata.normalize("NFD", "a <zoë>"), [unicodedata.normalize("NFC", "<zoë>")], []),
        ],
    )
    def test_are_bracketed_and_bound_by_nobody(self, text, tokens, expected):
        assert diagnosis.unknown_words(text, tokens) == expected

    def test_the_sentence_names_what_was_meant_or_what_there_is(self):
        meant = diagnosis.unknown_word_sentence("<Anna>", ["<rex>", "<anna>"])
        assert meant == ("the prompt says <Anna>, which no binding knows. Did you mean <anna>?")
        strange = diagnosis.unknown_word_sentence("<style>", ["<rex>", "<anna>"])
        assert strange.endswith("which no binding knows (bound are: <rex>, <anna>).")


class TestSimilar:
    @pytest.mark.parametrize(
        "text, token",
        [
            ("a portrait of <Anna>", "<anna>"),
            ("a portrait of anna, smiling", "<anna>"),
            ("a portrait of (anna:1.2)", "<anna>"),
            ("a portrait of <ana>", "<anna>"),
            ("a portrait of < anna >", "<anna>"),
            ("a portrait of ＜anna＞", "<anna>"),
            ("a portrait of [anna]", "<anna>"),
            ("a portrait of <annna>", "<anna>"),
            ("my Black Dog runs", "black dog"),
            ("ANNA", "anna"),
            ("a portrait of <anna_>", "<anna>"),
        ],
    )
    def test_slips_are_found(self, text, token):
        assert diagnosis.similar_in([text], token) is not None

    @pytest.mark.parametrize(
        "text", ["a portrait of a woman", "", "<rex>", "and a man", "an annual meeting", "..."]
    )
    def test_other_words_are_not(self, text):
        assert diagnosis.similar_in([text], "<anna>") is None

    def test_the_nearest_counts(self):
        assert diagnosis.most_similar("<Anna>", ["<ana>", "<anna>", "<hannah>"]) == "<anna>"

    def test_nothing_resembles_a_token_of_brackets_alone(self):
        assert diagnosis.most_similar("<>", ["<anna>", ""]) is None


class TestSentences:
    def test_a_slip_is_named(self):
        assert diagnosis.why_not_written("<anna>", "<Anna>") == (
            "no prompt of this sampling says <anna>; one says <Anna>. Write <anna> there, exactly as "
            "it is bound"
        )

    @pytest.mark.parametrize("token", ["{anna}", "a|b}", "//anna", "/*x"])
    def test_a_token_that_the_page_eats_says_so(self, token):
        assert "The page reads {a|b}" in diagnosis.why_not_written(token, None)

    @pytest.mark.parametrize(
        "rows, steps, expected",
        [
            (1, range(30), "<anna> acted: 1 picture, steps 1-30 of 30, 12.3% of attention"),
            (4, [0], "<anna> acted: 4 pictures, step 1 of 30, 12.3% of attention"),
            (2, [3, 4, 9], "<anna> acted: 2 pictures, steps 4-5, 10 of 30, 12.3% of attention"),
        ],
    )
    def test_who_acted_where_and_how_much(self, rows, steps, expected):
        assert diagnosis.acted("<anna>", rows, steps, 30, 0.1234) == expected

    def test_many_runs_of_steps_are_cut(self):
        text = diagnosis.acted("<anna>", 1, range(0, 200, 2), 200, 0.5)
        assert "steps 1, 3, 5, 7, 9, 11, ... of 200" in text
