"""The memory that keeper and runner share."""

from __future__ import annotations

from packhorse.worker.page import Page


def test_each_number_has_a_place_of_its_own() -> None:
    page = Page.create()
    try:
        names = ("renewed_ms", "pulse_ms", "allowed_ms", "holding", "busy", "ended")
        for number, name in enumerate(names, 1):
            setattr(page, name, number)
        assert [getattr(page, name) for name in names] == [1, 2, 3, 4, 5, 6]
    finally:
        page.close()
