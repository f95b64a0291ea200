"""The report's sections, each from the results alone; empty where its methods were not measured."""

from __future__ import annotations

from tiny_world import world
from tiny_world.files import UNET

from ..ablations.encoders import DECOUPLED, LONG_STEPS, ablations_of
from ..drawing.catalogue import ABLATION_IDENTITIES, MAIN, STRENGTHS, at_strength, catalogue
from ..drawing.methods import SHIPPED
from ..measures.scores import FIGURES, STYLES, SUBJECT_AND_BACKGROUND
from .results import Results
from .tables import by_style, of_method, overview, plain, share, table

_MEANINGS = {
    "none": "no personalisation: the noun in the token's place",
    "named": "no pack; the prompt names the palette's colour of every part, in words",
    "shipped": "this pack with the encoder in `demo/tiny_world/weights`",
    "one_token": "one subject token: every pixel is given the same value",
    "decoupled": "16 tokens with an attention of their own, added to that of the text (IP-Adapter's way)",
    "nested_4": "nested attention, 4 tokens, each value as long as it comes",
    "nested_16": "nested attention, 16 tokens",
    "nested_64": "nested attention, 64 tokens",
    "nested_16_scale_1": "16 tokens, each value made as long as the text's, head by head",
    "nested_16_scale_2": "16 tokens, twice as long",
    "nested_16_scale_4": "16 tokens, four times as long",
    "joined": "16 tokens among the keys of the layer itself, in one softmax with text and pixels",
    "nested_16_model_norm": "16 tokens whose keys pass the norm that the model has for its text's",
    "learned_key": "nested attention, 16 tokens, and a key for s from the encoder in place of the text's",
    "moved_key": "the same, added to the text's",
    "decoupled_long": "the same as `decoupled`, trained for longer",
    "nested_16_long": "the same as `nested_16`, trained for as long",
    "text_too": "nested attention, 16 tokens, for the queries of the text as for those of the pixels",
    "double_blocks": "nested attention, 16 tokens, in the three double blocks, the first half of all",
    "single_blocks": "nested attention, 16 tokens, in the three single blocks, the second half",
}
MAIN_NAMES = tuple(method.name for method in MAIN)


def ablation_names(results: Results) -> tuple[str, ...]:
    """Of the base model's ablations, in the order of the table."""
    return tuple(method.name for method in catalogue(results.evaluation.model).ablations)


_OF_MODEL = {
    "joint": (
        "# Evaluation: joint attention",
        "What [`evaluation.md`](evaluation.md) says of a UNet, measured on a transformer of joint "
        "attention: ComfyUI's `Flux` with three double and three single blocks on a grid of 8 x 8 "
        "patches, which reads with the same text encoder.\n\n",
    ),
    "cross": (
        "# Evaluation: a transformer with cross-attention",
        "What [`evaluation.md`](evaluation.md) says of a UNet, measured on a transformer with "
        "cross-attention: ComfyUI's `WanModel` with four blocks on a grid of 8 x 8 patches, which "
        "reads with the same text encoder.\n\n",
    ),
}


def introduction(results: Results) -> str:
    """What this page is."""
    model = results.evaluation.model
    title, where = ("# Evaluation", "") if model == UNET else _OF_MODEL[model]
    return (
        f"{title}\n\n{where}"
        "Does Nested Attention keep the subject *and* the prompt? In the tiny world (`demo/tiny_world`) "
        "that is a question with an answer: a picture follows from an identity and a prompt, so for "
        "every identity that nobody has seen and every prompt there is exactly one right picture, and "
        "what was drawn is measured against it.\n\n"
        "This page is written by `lab/evaluate.py`, except for the conclusions."
    )


def claims(results: Results) -> str:
    """The paper's, beside what is measured here."""
    many, beside = "`nested_4`, `nested_16`, `nested_64`", "`decoupled`"
    scales = "`nested_16_scale_1`, `_2`, `_4`"
    model = results.evaluation.model
    if model != UNET:
        many, beside, scales = "`nested_16`", "`decoupled` and `joined`", "`nested_16_scale_2`"
    if "decoupled_long" in ablations_of(model):
        beside = f"{beside}, `nested_16_long` against `decoupled_long`"
    return (
        "The paper ([arXiv:2501.01407](https://arxiv.org/abs/2501.01407)) claims a balance: identity is "
        "kept and the prompt is obeyed.\n\n"
        + table(
            ["claim", "measured by"],
            [
                [
                    "a subject of many tokens, looked up anew by each pixel, is kept better than one "
                    "value that is the same everywhere",
                    f"{many} against `one_token`",
                ],
                [
                    "a subject that speaks through its own word leaves the prompt its say; richer image "
                    "conditions beside the text take it away",
                    f"`nested_16` against {beside}, at strength 1 and along the curve",
                ],
                [
                    "values of a fixed length keep the balance (the authors' app has a factor of 2; that "
                    "it is the length in text values is our reading)",
                    f"{scales} against `nested_16`, which leaves lengths alone",
                ],
            ],
            words=2,
        )
    )


def method(results: Results) -> str:
    """Everything that has to be known to read the figures."""
    how, budget = results.evaluation.sampling, results.evaluation.budget
    others = results.identities_of_others
    on = f"They and the curves are measured on the first {others} identities. " if others else ""
    lines = [[f"`{name}`", _MEANINGS[name]] for name in results.measured(_MEANINGS)]
    return (
        f"* **Pictures.** Identities come from seed {results.evaluation.seed}, in a range of random numbers "
        "that training never uses. Each has one photograph (in photo style, somewhere) and one prompt "
        f"in every style ({', '.join(world.STYLES)}), with place, background and prop drawn anew. The "
        "prompt says everything but the identity. The same prompt starts from the same noise whatever "
        "the method.\n"
        "* **Through ComfyUI.** The pack as ComfyUI loads it, its nodes, its text encode node, what "
        f"its KSampler calls ({how.sampler}, {how.scheduler}, {how.steps} steps, cfg {how.cfg:g}) and its "
        "VAE decode node. Several identities share a batch; a test holds that to single runs.\n"
        "* **Figures.** PSNR in dB, more is better, of each picture from its mean squared error; tables "
        "have the mean over pictures. *Subject*: on the subject's pixels. *Background*: on all others. "
        "*Style obeyed*: how often, among the right answers in all styles, the one in the style that was "
        "asked for is the nearest on the subject's pixels. *Gain* and *change*: against `none`, identity by "
        "identity.\n"
        "* **Intervals** are 95 %, by bootstrap over identities. They do not contain what another run of "
        "training would change.\n"
        f"* **Ablations** differ in one respect and have the same budget: {budget['steps']} steps of "
        f"{budget['batch_size']} samples, by the trainer of this repository, a part of the shipped "
        f"encoder's (`PRESETS` in `lab/train.py`). {on}Compare them with each other, not with `shipped`.\n\n"
        + table(["method", "what it is"], lines, words=2)
    )


def shipped(results: Results) -> str:
    """What the shipped encoder gains, style by style."""
    names = results.measured(MAIN_NAMES)
    if SHIPPED not in names:
        return ""
    return (
        f"{overview(results, names)}\n\n"
        f"Subject, dB:\n\n{by_style(results, names, 'subject_psnr')}\n\n"
        f"Background, dB:\n\n{by_style(results, names, 'background_psnr')}"
    )


def pictures(results: Results) -> str:
    """What the picture of examples shows."""
    return (
        "The first person and the first dog of the seed in every style; nothing was picked. At the left "
        "the photograph that the encoder saw, then the one right answer."
    )


def curve(results: Results) -> str:
    """The balance when the strength changes."""
    lines = []
    for name in measured_curves(results):
        for strength in STRENGTHS:
            method = at_strength(name, strength)
            *figures, obeyed = (of_method(results, method, figure) for figure in FIGURES)
            cells = [f"`{name}`", f"{strength:g}", *map(plain, figures), share(obeyed)]
            lines.append(cells)
    if not lines:
        return ""
    scale = budget = ""
    for nested, other in (("nested_16", DECOUPLED), ("nested_16_long", "decoupled_long")):
        if other in measured_curves(results):
            scale = f"; for `{other}` it is IP-Adapter's scale"
            budget = f" `{nested}` and `{other}` have the same budget."
    return (
        f"Strength from 0 to 1.5{scale}. Up is more of the subject, right more of the prompt.{budget}\n\n"
        + table(["", "strength", "subject", "background", "whole picture", "style obeyed"], lines)
    )


def ablations(results: Results) -> str:
    """All of them beside each other."""
    names = results.measured(ablation_names(results))
    budget = results.evaluation.budget
    longer = f", those called long for {LONG_STEPS:,}" if "nested_16_long" in names else ""
    if not names:
        return ""
    return (
        f"Each trained for {budget['steps']} steps of {budget['batch_size']} samples{longer}.\n\n"
        + overview(results, names)
    )


def everything(results: Results) -> str:
    """Each method and style; the numbers of the JSON file."""
    lines = []
    for name, scores in results.scores.items():
        for style in STYLES:
            both = [of_method(results, name, figure, style) for figure in SUBJECT_AND_BACKGROUND]
            count = str(scores.pictures_in(style))
            lines.append([f"`{name}`", style, *map(plain, both), count])
    header = ["method", "style", "subject", "background", "pictures"]
    return f"<details><summary>All methods, style by style</summary>\n\n{table(header, lines)}\n\n</details>"


def repeat(results: Results) -> str:
    """The commands."""
    identities = max(scores.identities for scores in results.scores.values())
    model, page = results.evaluation.model, "evaluation"
    seed, others = results.evaluation.seed, results.identities_of_others
    options = f"--identities {identities} --seed {seed} --output evaluation"
    if model != UNET:
        options, page = f"--model {model} {options}", f"evaluation-{model}"
    everything = "--methods all"
    if others not in (0, ABLATION_IDENTITIES):
        everything = f"{everything} --others {others}"
    if results.several is not None:
        everything = f"{everything} --several {results.several.count}"
    script = "lab/evaluate.py"
    return (
        "Without training anything, the shipped encoder against `none` and `named`:\n\n"
        f"    python dev.py exec {script} {options} --json evaluation.json\n\n"
        "All of it, ablations trained first (`--tools` brings the trainer's dependencies), and this page:\n\n"
        f"    python dev.py exec --tools {script} {options} \\\n"
        f"        {everything} --json evaluation.json --report docs/{page}.md\n\n"
        "Interrupt it whenever you like: trainings have checkpoints, pictures are kept in parts of 16 "
        "identities, and the same command goes on from there. Other methods may be trained and drawn at "
        "the same time by a second command with the same output folder."
    )


def measured_curves(results: Results) -> list[str]:
    """Methods that were measured at every strength."""
    return [
        name
        for name in catalogue(results.evaluation.model).curves
        if all(at_strength(name, strength) in results.scores for strength in STRENGTHS)
    ]
