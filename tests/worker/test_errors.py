"""Errors have the statuses of the contract, and an unexpected one shows no text."""

from __future__ import annotations

import pytest

from bge_worker.errors import WorkerError, logged_inference_error

STATUS_AND_RETRY = {
    "ValidationError": (422, False),
    "TooLargeError": (413, False),
    "NotServedError": (404, False),
    "OverloadedError": (429, True),
    "OutOfMemoryError": (503, True),
    "InferenceError": (500, True),
    "MalformedError": (400, False),  # from here on of the HTTP server alone
    "UnauthorizedError": (401, False),
    "ForbiddenError": (403, False),
    "SlowBodyError": (408, True),
    "HeadTooLargeError": (431, False),
}


def test_errors_have_the_statuses_of_the_contract() -> None:
    errors = WorkerError.__subclasses__()
    assert {e.__name__: (e.status, e.retry) for e in errors} == STATUS_AND_RETRY


@pytest.mark.parametrize(
    ("kind", "is_quoted"), [(ValueError, False), (KeyError, False), (RuntimeError, True)]
)
def test_an_unexpected_error_is_logged_under_an_id(
    kind: type[Exception], is_quoted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Only messages of types that describe shapes and devices are logged."""
    try:
        raise kind("совершенно секретно")
    except Exception as error:
        message = str(logged_inference_error(error))
    assert f"inference error {message.split()[-1]}: {kind.__name__}" in caplog.text
    assert "секретно" not in message
    assert ("секретно" in caplog.text) == is_quoted
    assert "/" not in message + caplog.text  # no path
