"""C11: what a path may say. No operation opens a file by a name from outside, and none is misled by one."""

from __future__ import annotations

import httpx
import pytest

from packhorse import Packhorse

from ..worker.working import work
from .kit import client_of

TRAVERSALS = [
    b"..%2f..%2f..%2fetc%2fpasswd",
    b"%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    b"..%5c..%5cwindows%5cwin.ini",
    b"%2fetc%2fpasswd",
    b"//etc/passwd",
    b"C:%5cwindows%5cwin.ini",
    b"..%252f..%252fetc%252fpasswd",
    b"%c0%ae%c0%ae/etc/passwd",
    b"....//....//etc/passwd",
    b"%00",
    b"jobs.db%00.json",
    b"%ff%fe",
    b".",
    b"..",
    b"%2e%2e",
]
PLACES = [
    b"/",
    b"/jobs/",
    b"/api/v1/jobs/",
    b"/api/v1/queues/",
    b"/api/v1/schedules/",
    b"/api/v1/workflows/",
    b"/api/v1/rate-limits/",
]


@pytest.mark.parametrize("place", PLACES, ids=bytes.decode)
def test_a_path_that_climbs_finds_nothing(place: bytes) -> None:
    async def scenario() -> None:
        async with client_of(Packhorse("memory://paths")) as client:
            for traversal in TRAVERSALS:
                url = httpx.URL("http://127.0.0.1").copy_with(raw_path=place + traversal)
                answer = await client.get(url)
                assert answer.status_code in {200, 400, 404, 405, 422}, (traversal, answer.text)
                assert "root:" not in answer.text
                assert "[fonts]" not in answer.text
                if answer.status_code == 200:  # a name that only looks odd, of something that can be asked for
                    assert traversal in {b".", b"..", b"%2e%2e"}, traversal
                else:
                    assert answer.headers["content-type"] == "application/problem+json", traversal
                    assert "Traceback" not in answer.text

    work(scenario)
