"""MLflow's scoring server, kept from repeating what a request holds."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from mlflow.exceptions import MlflowException

from lookalike.errors import DataError, LookalikeError
from lookalike.serving.contract import KEY, KINDS, Options, Refused, failed

_log = logging.getLogger(__name__)
_APP: Final = "mlflow.pyfunc.scoring_server.app"
_LAYOUT: Final = f"dataframe_records, a list of objects with {', '.join(KINDS)} and {KEY}"

Answer = Callable[..., Any]


def guard() -> None:
    """In a process that is MLflow's server, let every refusal be one of ours.

    What MLflow says of a request that it cannot read begins with the request: a shop's photos and
    ids would come to lie in the logs of whoever asked.
    """
    if _APP not in sys.modules:
        return
    from mlflow.pyfunc import scoring_server

    if not hasattr(scoring_server.invocations, "__wrapped__"):
        scoring_server.invocations = guarded(scoring_server.invocations)


def guarded(answer: Answer) -> Answer:
    """The server's `invocations`, whose errors are ours."""

    @wraps(answer)
    def invocations(data: bytes, content_type: str | None, *rest: Any) -> Any:
        try:
            if content_type is None:
                raise Refused(DataError("no Content-Type is given", allowed="application/json"))
            check_params(data)
            return answer(data, content_type, *rest)
        except Refused:
            raise
        except MlflowException:
            raise Refused(unread(data)) from None
        except Exception:
            _log.exception("a request failed")
            raise failed() from None

    return invocations


def check_params(body: bytes) -> None:
    """Refuse a parameter that MLflow would pass over, or refuse in words of its own.

    Raises:
        Refused: of a name or a type that no parameter has.
    """
    if b'"params"' not in body:
        return
    try:
        content = json.loads(body)
    except ValueError:
        return  # refused as a whole
    if isinstance(content, dict) and content.get("params") is not None:
        try:
            Options.check(content["params"])
        except DataError as error:
            raise Refused(error) from None


def unread(body: bytes) -> LookalikeError:
    """Why a request cannot be read, without a word of it."""
    try:
        content = json.loads(body)
    except ValueError:
        return DataError("the request cannot be read as JSON", allowed=f"an object: {_LAYOUT}")
    if not isinstance(content, dict):
        return DataError("the request is no JSON object", allowed=f"an object: {_LAYOUT}")
    return DataError("the request has no rows that can be read", allowed=_LAYOUT)
