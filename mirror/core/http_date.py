"""Dates in HTTP headers (RFC 9110 section 5.6.7)."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def parse_http_date(text: str) -> datetime | None:
    """Return the time with its zone; None if the text is not a date. A date without a zone is GMT, as all dates of HTTP are."""
    try:
        date = parsedate_to_datetime(text)
        return date if date.tzinfo else date.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
