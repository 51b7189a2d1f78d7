"""What the server can say no with. Every error carries its status, type, code, parameter and message."""

from __future__ import annotations

import httpx


class GrouperError(Exception):
    """An answer that is not a success. `param` is the JSON path of what was wrong, where the server names one."""

    def __init__(self, message: str, *, status: int, type: str | None = None, code: str | None = None,
                 param: str | None = None, retry_after: float | None = None):
        super().__init__(f"{status}: {message}" + (f" ({param})" if param and param not in message else ""))
        self.message, self.status, self.type, self.code, self.param = message, status, type, code, param
        self.retry_after = retry_after


class BadRequest(GrouperError):
    """400: the request is wrong, and `param` says where."""


class Denied(GrouperError):
    """401 and 403: the key is missing, wrong, or not the one for this route."""


class NotFound(GrouperError):
    """404."""


class Conflict(GrouperError):
    """409: a lease that is lost, a version that has other weights, an idempotency key with another body."""


class EndOfData(GrouperError):
    """410: the last group of the dataset was delivered."""


class QueueFull(GrouperError):
    """429: try again after `retry_after` seconds."""


class NotReady(GrouperError):
    """503: no weights to serve, or draining."""


KINDS = {400: BadRequest, 401: Denied, 403: Denied, 404: NotFound, 409: Conflict, 410: EndOfData, 429: QueueFull, 503: NotReady}


def error_of(response: httpx.Response) -> GrouperError:
    """The exception that an answer stands for; the text of whoever answered, if it was not grouper."""
    try:
        said = response.json()["error"]
        fields = {name: said.get(name) for name in ("type", "code", "param")}
        message = said["message"]
    except (ValueError, KeyError, TypeError, AttributeError):
        fields, message = {}, response.text[:500] or response.reason_phrase
    after = response.headers.get("retry-after", "")
    return KINDS.get(response.status_code, GrouperError)(
        message, status=response.status_code, retry_after=float(after) if after.isdigit() else None, **fields)
