"""MLflow's scoring server, kept from repeating what a request holds."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from mlflow.exceptions import MlflowException

from lookalike.errors import DataError
from lookalike.serving.contract import KEY, KINDS, Options, Refused, failed

_log = logging.getLogger(__name__)
_APP: Final = "mlflow.pyfunc.scoring_server.app"
_LAYOUT: Final = (
    f"an object with dataframe_records, a list of objects with {', '.join(KINDS)} and {KEY}"
)

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
            return answer(read(data, content_type), content_type, *rest)
        except Refused:
            raise
        except MlflowException:
            raise Refused(_unread("the request has no rows that can be read")) from None
        except Exception:
            _log.exception("a request failed")
            raise failed() from None

    return invocations


def read(body: bytes, content_type: str | None) -> bytes | dict[str, Any]:
    """A request's JSON object, which MLflow takes as it takes its bytes; other layouts as they are.

    Raises:
        Refused: no Content-Type, no JSON object, or a parameter that MLflow would pass over, or
            refuse in words of its own: of a name or a type that none has.
    """
    if content_type is None:
        raise Refused(DataError("no Content-Type is given", allowed="application/json"))
    if content_type.partition(";")[0].strip() != "application/json":
        return body
    try:
        content = json.loads(body)
    except ValueError:
        raise Refused(_unread("the request cannot be read as JSON")) from None
    if not isinstance(content, dict):
        raise Refused(_unread("the request is no JSON object"))
    if content.get("params") is not None:
        try:
            Options.check(content["params"])
        except DataError as error:
            raise Refused(error) from None
    return content


def _unread(fact: str) -> DataError:
    return DataError(fact, allowed=_LAYOUT)
