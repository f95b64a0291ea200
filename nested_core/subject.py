"""A subject: the tokens that an encoder made of one or several photographs."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from .encoder import Encoder
from .errors import SubjectError
from .hashing import encoder_hash
from .shapes import Float

CombineMode = Literal["concatenate", "average"]
_THUMBNAIL_SIZE = 128

# Below a millionth of the greatest weight a photograph could as well be left out.
SMALLEST_WEIGHT = 1e-6


@dataclass(frozen=True, eq=False)
class Subject:
    """Subject tokens together with the encoder that made them and alone can read them.

    Attributes:
        tokens: float32 on the CPU; several references stand side by side unless averaged.
        references: number of tokens that came from each reference image.
        noun: the word the encoder was trained with (a binding may choose another).
        thumbnail: base64 of a small JPEG of the first reference; empty if there is none.
        weights: of each reference, as of `relative_weights`; empty where all are equal.
    """

    tokens: Float[Tensor, "tokens output_dim"]
    encoder: Encoder
    references: tuple[int, ...]
    noun: str
    thumbnail: str = field(default="", repr=False)
    weights: tuple[float, ...] = ()

    @cached_property
    def digest(self) -> bytes:
        """sha256 of the tokens and weights: equal for equal subjects, whichever object holds them."""
        content = hashlib.sha256(self.tokens.contiguous().numpy().tobytes())
        if self.weights:
            content.update(json.dumps([self.references, self.weights]).encode())
        return content.digest()

    @property
    def log_weights(self) -> Float[Tensor, " tokens"] | None:
        """What the weights add to the nested logits of each token; None where all are equal."""
        if not self.weights:
            return None
        logarithms = torch.tensor([math.log(weight) for weight in self.weights])
        return logarithms.repeat_interleave(torch.tensor(self.references))

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """This one alone; a sequence has several."""
        return (self,)

    def of_picture(self, index: int) -> Subject:
        """The subject of a picture of the batch: always this one."""
        return self


@dataclass(frozen=True, eq=False)
class SubjectSequence:
    """A subject for each picture of a batch, from the first again where the batch is longer.

    It stands wherever a `Subject` stands that nobody looks into.

    Raises:
        SubjectError: no subject, or subjects of different encoders.
    """

    subjects: tuple[Subject, ...]

    def __post_init__(self) -> None:
        if not self.subjects:
            raise SubjectError(
                "Subject per Picture: found no subject, expected at least one. Connect the output of "
                "an Encode Subject or Load Subject node."
            )
        for number, subject in enumerate(self.subjects, start=1):
            if not _is_same_encoder(self.encoder, subject.encoder):
                raise SubjectError(
                    f"Subject per Picture: subject {number} was made with the encoder "
                    f"'{subject.encoder.name}', but the first one with '{self.encoder.name}', whose "
                    "content is another. Make all of them with the same encoder."
                )

    @property
    def encoder(self) -> Encoder:
        """The one that made all of them."""
        return self.subjects[0].encoder

    @property
    def noun(self) -> str:
        """The first one's: the pictures of a batch share their prompt."""
        return self.subjects[0].noun

    @cached_property
    def digest(self) -> bytes:
        """sha256 over the subjects' digests, in their order."""
        return hashlib.sha256(b"".join(each.digest for each in self.subjects)).digest()

    def of_picture(self, index: int) -> Subject:
        """The subject of a picture of the batch, counted from 0."""
        return self.subjects[index % len(self.subjects)]


def _is_same_encoder(one: Encoder, other: Encoder) -> bool:
    return one is other or encoder_hash(one) == encoder_hash(other)


def parse_weights(text: str, num_references: int) -> tuple[float, ...]:
    """The weights of the references as a user writes them, `2, 1, 0.5`; empty text is no weights.

    Raises:
        SubjectError: not a number above 0 for each reference, or too far apart.
    """
    if not text.strip():
        return ()
    weights = tuple(
        _parse_weight(term.strip(), number) for number, term in enumerate(text.split(","), start=1)
    )
    if len(weights) != num_references:
        raise SubjectError(
            f"Encode Subject: weights '{text[:60]}' has {len(weights)} number(s), expected one for "
            f"each of the {num_references} reference image(s). Separate them by commas and write "
            "fractions with a point (2, 1, 0.5), or leave the field empty: then all count the same."
        )
    return relative_weights(weights)


def _parse_weight(term: str, number: int) -> float:
    try:
        weight = float(term)
    except ValueError:
        weight = math.nan
    if not 0.0 < weight < math.inf:
        raise SubjectError(
            f"Encode Subject: weight {number} is '{term[:60]}', expected a number above 0. Write one "
            "number for each reference image, such as 2, 1, 0.5; to leave a photograph out, take it "
            "out of the batch."
        )
    return weight


def relative_weights(weights: Sequence[float]) -> tuple[float, ...]:
    """Positive weights over the greatest of them; none where all are equal.

    Only their ratios count, in the mean as in the softmax. Over the greatest, their logarithms are
    never above 0, so no logit grows beyond what half precision holds; and equal weights are none at
    all, so they cost nothing and change no bit.

    Raises:
        SubjectError: the least is below a millionth of the greatest.
    """
    greatest = max(weights, default=1.0)
    relative = tuple(weight / greatest for weight in weights)
    if min(relative, default=1.0) < SMALLEST_WEIGHT:
        raise SubjectError(
            f"Encode Subject: the weights reach from {min(weights):g} to {greatest:g}, expected the "
            f"least to be at least {SMALLEST_WEIGHT:g} of the greatest. Take a photograph that shall "
            "not count out of the batch."
        )
    return relative if any(weight != 1.0 for weight in relative) else ()


def combine_references(
    tokens: Float[Tensor, "references queries output_dim"],
    mode: CombineMode,
    weights: tuple[float, ...] = (),
) -> tuple[Float[Tensor, "tokens output_dim"], tuple[int, ...], tuple[float, ...]]:
    """One subject's tokens from those of its reference images, how many came from each, its weights.

    `concatenate` puts them side by side, so that a pixel finds the part in whichever photograph
    shows it best: a weight of 2 is then the same photograph twice. `average` takes their mean, so
    that the cost stays that of one photograph; that has used up the weights.
    """
    num_references, num_queries, _ = tokens.shape
    if mode == "average":
        return _mean(tokens, weights), (num_queries,), ()
    if mode == "concatenate":
        return tokens.flatten(0, 1), (num_queries,) * num_references, weights
    raise SubjectError(f"combine is '{mode}', expected 'concatenate' or 'average'.")


def _mean(tokens: Tensor, weights: tuple[float, ...]) -> Tensor:
    if not weights:
        return tokens.mean(dim=0)
    return torch.einsum("r,rqd->qd", tokens.new_tensor(weights), tokens) / math.fsum(weights)


def subject_from_features(
    encoder: Encoder,
    features: Float[Tensor, "references patches embedding_dim"],
    thumbnail: str,
    combine: CombineMode = "concatenate",
    weights: tuple[float, ...] = (),
) -> Subject:
    """The subject whose reference photographs have these image-encoder features.

    The encoder must be where the features are. The tokens end on the CPU, in float32.

    Args:
        weights: of each reference, as of `relative_weights`.
    """
    encoded = encoder.encode(features).detach().cpu()
    tokens, references, weights = combine_references(encoded, combine, weights)
    noun = encoder.config.noun
    return Subject(tokens.contiguous(), encoder, references, noun, thumbnail, weights)


def make_thumbnail(image_hwc: Float[Tensor, "height width 3"]) -> str:
    """Base64 of a JPEG at most 128 pixels wide and high."""
    pixels = (image_hwc.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    picture = Image.fromarray(pixels)
    picture.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
