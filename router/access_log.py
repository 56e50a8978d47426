"""One line for each call that has ended, where it is asked for. Never a query, a header or a body."""

import logging

from .ledger import CLIENT_GONE, CallRecord

_log = logging.getLogger("espalier.access")


def log_call(record: CallRecord) -> None:
    """Log a call that has ended; status 499 means that its client left before a reply began."""
    has_begun = record.status != CLIENT_GONE
    first_byte_s = round((record.head_s or record.ended_s) - record.began_s, 4) if has_begun else None
    _log.info(
        "event=call method=%s path=%s status=%d duration_s=%.4f first_byte_s=%s request_bytes=%d"
        " reply_bytes=%d client=%s request_id=%s",
        record.method,
        record.path,
        record.status,
        record.ended_s - record.began_s,
        first_byte_s,
        record.request_bytes,
        record.reply_bytes,
        record.client[0] if record.client else None,
        record.request_id.decode(),
    )
