"""What the encoder was asked to do, beside what was measured."""

from __future__ import annotations

from tiny_world import world

from ..drawing.methods import SHIPPED
from ..measures.scores import Estimate, difference
from .results import NONE, Results
from .tables import gain, signed, table

_GAIN_DB, _LOSS_DB = 6.0, 0.5


def requirements(results: Results) -> str:
    """A line for each demand; met where the mean meets it."""
    lines = [*_of_shipped(results), *_of_balance(results)]
    return table(["asked for", "found, dB", "met"], lines) if lines else ""


def _of_shipped(results: Results) -> list[list[str]]:
    if not {NONE, SHIPPED} <= set(results.scores):
        return []
    lines = []
    for style in world.STYLES:
        gained = gain(results, SHIPPED, "subject_psnr", style)
        if style == "photo":
            lines.append(_line(f"photo: at least {_GAIN_DB:g} dB on the subject", gained, _GAIN_DB))
        else:
            text = f"{style}: a clear gain on the subject (the interval is above 0)"
            lines.append([text, signed(gained), _yes(gained.low > 0.0)])
    loss = gain(results, SHIPPED, "background_psnr")
    lines.append(_line(f"at most {_LOSS_DB:g} dB lost off the subject", loss, -_LOSS_DB))
    if "named" in results.scores:
        for style in world.STYLES:
            more = difference(
                results.scores[SHIPPED], results.scores["named"], "subject_psnr", style
            )
            lines.append(_line(f"{style}: at least what naming every part gains", more, 0.0))
    return lines


def _of_balance(results: Results) -> list[list[str]]:
    """Encoders of the same budget against each other."""
    demands = (
        ("subject, above", "subject_psnr", 0.0),
        (f"background, at most {_LOSS_DB:g} dB below", "background_psnr", -_LOSS_DB),
        ("whole picture, above", "picture_psnr", 0.0),
    )
    pairs = [("nested_16", name) for name in ("one_token", "decoupled", "joined")]
    pairs.append(("nested_16_long", "decoupled_long"))
    return [
        _line(
            f"`{nested}` {text} `{name}`",
            difference(results.scores[nested], results.scores[name], figure),
            least,
        )
        for nested, name in pairs
        if {nested, name} <= set(results.scores)
        for text, figure, least in demands
    ]


def _line(text: str, measured: Estimate, least: float) -> list[str]:
    return [text, signed(measured), _yes(measured.mean >= least)]


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"
