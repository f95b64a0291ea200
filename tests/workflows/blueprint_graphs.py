"""A graph with the nodes of a blueprint, each by itself, and the same graph without them."""

from __future__ import annotations

from tiny_graphs import Prompt, one_photograph

APPLY, SUBJECT = "NestedAttention_Apply", "NestedAttention_Subject"
# What Apply is given, and how many subjects there are.
SEPARATION = {"Personalise": 0.0, "Two subjects": 0.8}
_SUBJECTS = {"Personalise": 1, "Two subjects": 2}
_CAST = (
    {"token": "<anna>", "noun": "woman", "fidelity": 0.7},
    {"token": "<rex>", "noun": "dog", "fidelity": 0.4},
)
_PHOTOGRAPHS = ("anna photo", "rex photo")


def flat_graph(name: str, seed: int) -> Prompt:
    """The nodes of the blueprint, each by itself in the graph."""
    prompt = one_photograph()
    prompt["latent"]["inputs"].update(width=64, height=64)
    prompt["sampler"]["inputs"].update(seed=seed, steps=2)
    prompt["save"]["inputs"]["filename_prefix"] = f"{name} {seed}"
    count = _SUBJECTS[name]
    tokens = [each["token"] for each in _CAST[:count]]
    prompt["positive"]["inputs"]["text"] = f"a photo of {' and '.join(tokens)}"
    first = prompt.pop("subject")
    prompt["rex photo"] = {"class_type": "LoadImage", "inputs": {"image": "rex.jpg"}}
    prompt["apply"]["inputs"]["separation"] = SEPARATION[name]
    for number, (photograph, cast) in enumerate(zip(_PHOTOGRAPHS[:count], _CAST, strict=False)):
        inputs = {**first["inputs"], **cast, "image": [photograph, 0]}
        prompt[f"subject {number}"] = {"class_type": SUBJECT, "inputs": inputs}
        prompt["apply"]["inputs"][f"bindings.binding_{number}"] = [f"subject {number}", 0]
    return prompt


def plain_graph(prompt: Prompt) -> Prompt:
    """The same graph before the pack's nodes came into it."""
    ours = {key for key, entry in prompt.items() if entry["class_type"] in (APPLY, SUBJECT)}
    return {
        key: {
            **entry,
            "inputs": {
                name: ["checkpoint", value[1]]
                if isinstance(value, list) and value[0] in ours
                else value
                for name, value in entry["inputs"].items()
            },
        }
        for key, entry in prompt.items()
        if key not in ours
    }
