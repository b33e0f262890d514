"""Post a job's result until RunPod has it.

The SDK posts a result once: a reset connection, a 429, a timeout or a minute without network loses
finished work. Posting is idempotent, so a result whose response was lost is posted again. A job
keeps its slot until its result is posted: at most `BGE_CONCURRENCY` results of
`BGE_MAX_REPLY_BYTES` are held, and other jobs run meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Mapping
from time import monotonic
from typing import Any

from ..errors import InferenceError

log = logging.getLogger(__name__)

RETRY_SECONDS = 180.0  # after which a result is given up
ATTEMPT_SECONDS = 60.0  # for one post: a full reply of 9.5 MB at 160 KB/s
# Seconds between two attempts. The longest is short enough for a result to be posted within a
# container's grace time once the network is back.
MIN_PAUSE, MAX_PAUSE = 0.25, 5.0
RETRIED_STATUSES = (408, 429)  # beside redirects and all from 500 on
HEADERS = {"charset": "utf-8", "Content-Type": "application/x-www-form-urlencoded"}  # the SDK's


class Delivery:
    """Posts results to `url`, in which `$ID` stands for the job's id."""

    def __init__(
        self, url: str, *, retry_seconds: float = RETRY_SECONDS, min_pause: float = MIN_PAUSE
    ) -> None:
        self._url = url
        self._retry_seconds = retry_seconds
        self._min_pause = min_pause

    async def post(self, session: Any, job_id: str, result: Mapping[str, Any]) -> None:
        """Post `result` with `session`, an `aiohttp.ClientSession`.

        A result that RunPod refuses for good is logged, and a small error is posted instead, so
        that the caller does not wait for ever.
        """
        body = _encoded(result)
        del result  # as objects it takes several times the memory
        deadline = monotonic() + self._retry_seconds
        refusal = await self._post_until(deadline, session, job_id, body)
        if refusal is not None:
            reason = f"RunPod refused the result: {refusal} for {len(body)} bytes"
            log.error("job %s: %s", job_id, reason)
            body = _encoded({"error": str(InferenceError(reason))})
            await self._post_until(deadline, session, job_id, body)

    async def _post_until(
        self, deadline: float, session: Any, job_id: str, body: bytes
    ) -> str | None:
        """Post `body` until it is accepted or `deadline` passes. Return why it was refused."""
        pause = self._min_pause
        while True:
            status, outcome = await self._attempt(session, job_id, body)
            if 200 <= status < 300:
                return None
            if 400 <= status < 500 and status not in RETRIED_STATUSES:
                return outcome
            if monotonic() + pause > deadline:
                log.error("job %s: the result could not be posted: %s", job_id, outcome)
                return None
            log.warning("job %s: posting the result again in %.1f s: %s", job_id, pause, outcome)
            await asyncio.sleep(random.uniform(pause / 2, pause))
            pause = min(MAX_PAUSE, pause * 2)

    async def _attempt(self, session: Any, job_id: str, body: bytes) -> tuple[int, str]:
        """Return the status, 0 without a response, and the outcome for the log."""
        url = self._url.replace("$ID", job_id) + "&isStream=false"
        headers = HEADERS | {"X-Request-ID": job_id}
        status, outcome = 0, ""
        try:
            async with (
                asyncio.timeout(ATTEMPT_SECONDS),
                # A redirected POST would become a GET.
                session.post(url, data=body, headers=headers, allow_redirects=False) as response,
            ):
                status = response.status
                outcome = f"HTTP {status}"
                await response.read()  # so that the connection can be reused
        except Exception as error:  # its message may hold the address: only its type is logged
            outcome = outcome or type(error).__name__
        return status, outcome


def _encoded(result: Mapping[str, Any]) -> bytes:
    """Return the result as strict JSON, or an error instead: invalid JSON would never be read."""
    try:
        return json.dumps(result, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        log.error("a reply could not be encoded: %s", type(error).__name__)
        failed = InferenceError("the reply could not be encoded; the worker's log has the cause")
        return json.dumps({"error": str(failed)}).encode()
