"""The page of parts is of the parts there are."""

from grove_megatron.parts.page import PAGE, page


def test_the_page_is_of_these_parts():
    written = PAGE.read_text(encoding="utf-8")
    assert written == page(), "stale: run python -m grove_megatron.parts --write"
