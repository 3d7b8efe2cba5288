"""What training minimises."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lookalike.config.fields import Model, Share


class MultiSimilarity(Model):
    """Wang et al. 2019, as tensorflow-similarity computes it."""

    name: Literal["multi_similarity"] = "multi_similarity"
    alpha: Annotated[float, Field(gt=0)] = 2.0
    beta: Annotated[float, Field(gt=0)] = 10.0
    epsilon: Annotated[float, Field(ge=0)] = Field(
        0.1, description="mining's slack, a cosine distance; above 2 nothing is mined, all count"
    )
    lmda: Annotated[float, Field(ge=0, le=2)] = 0.5


class Triplet(Model):
    """A positive nearer than a negative by a margin (Schroff et al. 2015; Hermans et al. 2017)."""

    name: Literal["triplet"]
    mining: Literal["hard", "semi_hard"] = "semi_hard"
    margin: Annotated[float, Field(gt=0, le=2)] = 0.2


class NormalisedSoftmax(Model):
    """A direction a class, told apart by cosine (Zhai and Wu 2019)."""

    name: Literal["normalised_softmax"]
    scale: Annotated[float, Field(gt=0)] = 16.0
    smoothing: Share = 0.1


class SupervisedContrastive(Model):
    """Each positive against all others of the batch (Khosla et al. 2020)."""

    name: Literal["supervised_contrastive"]
    temperature: Annotated[float, Field(gt=0)] = 0.1


LOSSES: dict[str, type[Model]] = {
    "multi_similarity": MultiSimilarity,
    "triplet": Triplet,
    "normalised_softmax": NormalisedSoftmax,
    "supervised_contrastive": SupervisedContrastive,
}


def _named(loss: Any) -> Any:
    # Multi-Similarity is what a loss without a name is.
    return {"name": "multi_similarity", **loss} if isinstance(loss, dict) else loss


Loss = Annotated[
    Annotated[
        MultiSimilarity | Triplet | NormalisedSoftmax | SupervisedContrastive,
        Field(discriminator="name"),
    ],
    BeforeValidator(_named),
]


class Auxiliary(Model):
    """A normalised softmax beside the main loss."""

    weight: Annotated[float, Field(ge=0)] = Field(0.0, description="0: none")
    scale: Annotated[float, Field(gt=0)] = 16.0
    smoothing: Share = 0.1
