"""nfold's errors in OpenAI's form: a status, headers, and {"error": {message, type, param, code}}."""

from typing import Any

from ...models.errors import (
    BodyTooLargeError,
    ContextLengthError,
    NfoldError,
    NoGatewayError,
    OverloadedError,
    RequestError,
    UnavailableError,
    UnknownModelError,
)


def status_of(error: NfoldError) -> int:
    """The HTTP status that says the same."""
    if isinstance(error, RequestError):
        return error.status
    if isinstance(error, OverloadedError):
        return 429
    return 503 if isinstance(error, UnavailableError) else 500


def headers_of(error: NfoldError) -> dict[str, str]:
    """`Retry-After` in whole seconds, where the error knows when to come back."""
    if isinstance(error, OverloadedError):
        return {"Retry-After": str(max(1, round(error.retry_after_s)))}
    return {"Retry-After": "1"} if isinstance(error, UnavailableError) else {}


def body_of(error: NfoldError) -> dict[str, Any]:
    """The JSON body, for a response and for a stream that fails half-way."""
    kinds: list[tuple[type[NfoldError], str, str | None]] = [
        (ContextLengthError, "invalid_request_error", "context_length_exceeded"),
        (UnknownModelError, "invalid_request_error", "model_not_found"),
        (BodyTooLargeError, "invalid_request_error", "body_too_large"),
        (RequestError, "invalid_request_error", None),
        (OverloadedError, "rate_limit_error", "overloaded"),
        (NoGatewayError, "service_unavailable", "no_gateway"),
        (UnavailableError, "service_unavailable", "no_replica"),
        (NfoldError, "server_error", None),
    ]
    error_type, code = next((name, code) for kind, name, code in kinds if isinstance(error, kind))
    param = error.param if isinstance(error, RequestError) else None
    return {"error": {"message": str(error), "type": error_type, "param": param, "code": code}}
