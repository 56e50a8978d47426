from espalier.router.headers import end_to_end_request, request_head


def test_request_fields_are_kept_in_order_with_duplicates() -> None:
    headers = [
        (b"x-a", b"1"),
        (b"host", b"router"),
        (b"x-a", b"2"),
        (b"content-length", b"9"),
        (b"expect", b"100-continue"),
    ]
    assert end_to_end_request(headers) == [(b"x-a", b"1"), (b"x-a", b"2")]


def test_fields_that_connection_names_are_dropped() -> None:
    headers = [
        (b"x-hop", b"1"),
        (b"connection", b"Upgrade, X-Hop"),
        (b"upgrade", b"websocket"),
        (b"x-end", b"1"),
    ]
    assert end_to_end_request(headers) == [(b"x-end", b"1")]


def test_request_head_writes_host_and_length() -> None:
    head = request_head("POST", b"/generate?a=1", b"worker:1", [(b"x-a", b"1")], 2)
    assert head == b"POST /generate?a=1 HTTP/1.1\r\nhost: worker:1\r\nx-a: 1\r\ncontent-length: 2\r\n\r\n"


def test_get_without_body_has_no_length_but_post_has() -> None:
    assert b"content-length" not in request_head("GET", b"/", b"w", [], 0)
    assert b"content-length: 0\r\n" in request_head("POST", b"/", b"w", [], 0)
