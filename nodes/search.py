"""What people type into the search for nodes who want what this pack does, and do not know its name."""

from __future__ import annotations

# Names of the aim, and of other methods with the same aim: they shall find the way in, which is a
# subject and Apply.
LIKENESS = [
    "nested attention",
    "personalization",
    "personalisation",
    "personalize",
    "character",
    "consistent character",
    "character consistency",
    "likeness",
    "identity",
    "same person",
    "same face",
    "face id",
    "faceid",
    "face swap",
    "faceswap",
    "instantid",
    "pulid",
    "photomaker",
    "ipadapter",
    "ip adapter",
    "dreambooth",
    "textual inversion",
    "lora without training",
    "subject",
]
# What a photograph is called.
PHOTOGRAPH = ["photo", "photograph", "portrait", "face", "selfie", "reference", "reference image"]
