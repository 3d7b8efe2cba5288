"""The contract: what a release is asked, and what it answers. `docs/serving.md` is its manual."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, Final, TypedDict

from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType

from lookalike.errors import ContentError, DataError, LookalikeError

KINDS: Final = ("image", "item_id", "vector", "text", "input")
"""What a row may hold to look for: one of these. `input` is the older contract's image: a file, or
raw pixels."""
KEY: Final = "key"
ANSWER: Final = ("query", "rank", "item_id", "label", "distance", "similarity", "error")
"""Columns of every answer; those that were asked for come after them."""
ON_REQUEST: Final = ("thumbnail", "attributes", "about")
CODE, WORDS = "code", "message"
"""What `error` holds where a row could not be answered."""


class Asked(TypedDict, total=False):
    """The parameters of a request, by their names; see `Options`."""

    k: int
    within: float | None
    min_similarity: float | None
    where: str | None
    exclude_self: bool
    collapse: bool
    max_per: str | None
    effort: int | None
    thumbnails: bool
    attributes: bool
    about: bool


@dataclass(frozen=True)
class Limits:
    """What one request may hold.

    Attributes:
        rows: of a request.
        k: items of an answer.
        image_bytes: of an image file, decoded from base64.
        image_pixels: width x height of an image.
    """

    rows: int = 1_000
    k: int = 1_000
    image_bytes: int = 16 * 2**20
    image_pixels: int = 64_000_000

    def check(self, name: str, found: int, what: str, reason: str = "too_many") -> None:
        """Refuse more than a limit allows.

        Raises:
            ContentError: naming the limit; its code is `reason`.
        """
        if found > (limit := getattr(self, name)):
            allowed = f"at most {limit:,} (serving.max_{name} of the recipe)"
            raise ContentError(reason, f"{what} {found:,}", allowed=allowed)


@dataclass(frozen=True)
class Options:
    """What a request asks for, beside its rows.

    Attributes:
        k: items of an answer, at most.
        within: distance beyond which nothing is given.
        min_similarity: probability, by the encoder's calibration, below which nothing is given.
        where: which items may be found; see `lookalike.index.where`.
        exclude_self: whether an item that is asked for by its id is left out of its own answer.
        collapse: whether of a product's photos and of copies only the nearest is given; and where
            the item itself is left out, none of its own.
        max_per: how many of one value at most, as 'brand: 2, label: 5'.
        effort: how hard is looked; see `lookalike.index.Plan`.
        thumbnails, attributes, about: columns to add.
    """

    k: int = 10
    within: float | None = None
    min_similarity: float | None = None
    where: str | None = None
    exclude_self: bool = True
    collapse: bool = True
    max_per: str | None = None
    effort: int | None = None
    thumbnails: bool = False
    attributes: bool = False
    about: bool = False

    @classmethod
    def of(cls, params: Mapping[str, Any], limits: Limits) -> Options:
        """From a request's parameters; one that is null is not given.

        Raises:
            DataError: a value that is not allowed.
        """
        named = {field.name for field in fields(cls)}
        found = cls(**{k: v for k, v in params.items() if k in named and v is not None})
        if found.k < 1:
            raise DataError(f"k = {found.k}", allowed=f"1 to {limits.k:,}")
        limits.check("k", found.k, "k =")
        if found.within is not None and not math.isfinite(found.within):
            raise DataError(f"within = {found.within}", allowed="a finite distance")
        if found.min_similarity is not None and not 0 < found.min_similarity < 1:
            raise DataError(
                f"min_similarity = {found.min_similarity}", allowed="a probability between 0 and 1"
            )
        if found.effort is not None and found.effort < 1:
            raise DataError(f"effort = {found.effort}", allowed="at least 1")
        _ = found.most  # refused before anything is searched
        return found

    @staticmethod
    def check(params: Any) -> None:
        """Look whether a request's parameters, as JSON has them, are any of these.

        Raises:
            DataError: one has another name, or a value of another type.
        """
        if not isinstance(params, Mapping):
            raise DataError("params cannot be read", allowed="an object of names and values")
        known = {field.name: _kind(field) for field in fields(Options)}
        if not params.keys() <= known.keys():
            raise DataError("a parameter has a name that is not known", allowed=", ".join(known))
        for name, value in params.items():
            _, allowed, types = known[name]
            # By its very type: to Python a bool is an int.
            if value is not None and type(value) not in types:
                raise DataError(f"{name} has the type {type(value).__name__}", allowed=allowed)

    @property
    def most(self) -> dict[str, int]:
        """By 'label' or key of an attribute: how many of one value at most.

        Raises:
            DataError: `max_per` cannot be read.
        """
        most = {}
        for part in (self.max_per or "").split(","):
            if not part.strip():
                continue
            key, colon, number = part.rpartition(":")
            if not colon or not key.strip() or not number.strip().isdecimal() or int(number) < 1:
                raise DataError(
                    "max_per cannot be read",
                    allowed="label or keys of attributes with a number each: 'brand: 2, label: 5'",
                )
            most[key.strip()] = int(number)
        return most

    @property
    def columns(self) -> list[str]:
        """Of the answer."""
        asked = (self.thumbnails, self.attributes, self.about)
        return [
            *ANSWER,
            *(name for name, is_asked in zip(ON_REQUEST, asked, strict=True) if is_asked),
        ]


class Refused(MlflowException):  # type: ignore[misc]
    """A request as a whole that cannot be answered; the server says so with 400.

    MLflow's server puts the request's data before the words of an error that comes out of a model.
    Those of this one stay as they are.
    """

    def __init__(self, error: LookalikeError, code: int = INVALID_PARAMETER_VALUE):
        self._said = str(error)
        super().__init__(self._said, error_code=code)

    @property
    def message(self) -> str:
        return self._said

    @message.setter
    def message(self, value: str) -> None:
        pass


def failed() -> Refused:
    """What is said where the fault is ours: 500, without a word of what came."""
    error = LookalikeError(
        "the release failed at this request", remedy="Look into the server's log, and report it"
    )
    return Refused(error, INTERNAL_ERROR)


_TYPES: Final = {
    "int": (DataType.long, "a whole number", (int,)),
    "float": (DataType.double, "a number", (int, float)),
    "str": (DataType.string, "a text", (str,)),
    "bool": (DataType.boolean, "true or false", (bool,)),
}
"""By a parameter's annotation: MLflow's type, words for it, and JSON's values in Python."""


def _kind(field: Field[Any]) -> tuple[DataType, str, tuple[type, ...]]:
    return _TYPES[str(field.type).removesuffix(" | None")]


def signature() -> ModelSignature:
    """What MLflow checks: as little as it lets us, for its own refusals show the request."""
    params = [ParamSpec(each.name, _kind(each)[0], each.default) for each in fields(Options)]
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), name, required=False) for name in (*KINDS, KEY)]),
        outputs=Schema(
            [
                ColSpec(DataType.long if name == "rank" else AnyType(), name, required=False)
                for name in (*ANSWER, *ON_REQUEST)
            ]
        ),
        params=ParamSchema(params),
    )
