"""Everything that may contain a password is masked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.masking import mask_text, mask_url, mask_value

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("rtsp://user:hunter2@10.0.0.1:554/live", "rtsp://***@10.0.0.1:554/live"),
        ("rtsp://user:hun@hunter2@10.0.0.1/live", "rtsp://***@10.0.0.1/live"),
        ("rtsp://user:1/hunter2@10.0.0.1/live", "rtsp://***@10.0.0.1/live"),
        ("rtsp://user:1?hunter2@10.0.0.1/live", "rtsp://***@10.0.0.1/live"),
        ("rtsp://user:1#hunter2@10.0.0.1/live", "rtsp://***@10.0.0.1/live"),
        ("rtsp://hunter2@[fe80::1]:554/live", "rtsp://***@[fe80::1]:554/live"),
        ("http://host/live?token=hunter2", "http://host/live?***"),
        ("http://host/live?a=1?hunter2#hunter2", "http://host/live?***"),
        ("http://host/live#hunter2", "http://host/live#***"),
        ("rtsp://host:554/user=admin&password=hunter2&channel=1/0.sdp", "rtsp://host:554/user=***/0.sdp"),
        ("cache:http://user:hunter2@host/a.ts", "cache:http://***@host/a.ts"),
        ("concat:http://u:hunter2@a/1.ts|http://u:hunter2@b/2.ts", "concat:http://***@b/2.ts"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080/"),
        ("/videos/a@b=c?.ts", "/videos/a@b=c?.ts"),
    ],
)
def test_a_url_keeps_its_parts_that_are_not_secret(url: str, masked: str) -> None:
    assert mask_url(url) == masked
    assert mask_text(url) == masked
    assert SECRET not in masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (
            "[Errno 1] no: 'rtsp://u:hunter2@h/x' returned 22",
            "[Errno 1] no: 'rtsp://***@h/x' returned 22",
        ),
        ('see "http://h/x?k=hunter2", or not', 'see "http://h/x?***", or not'),
        ("two rtsp://u:hunter2@a/x\nrtsp://u:hunter2@b/x", "two rtsp://***@a/x\nrtsp://***@b/x"),
        ("user@host, no URL: a=b?c", "user@host, no URL: a=b?c"),
    ],
)
def test_a_text_keeps_its_words(text: str, masked: str) -> None:
    assert mask_text(text) == masked


def test_values_are_masked_wherever_they_are() -> None:
    url = f"rtsp://user:{SECRET}@host/x"

    class Camera:
        def __repr__(self) -> str:
            return f"Camera({url!r})"

    event = {"a": [url, {url: (url,)}], "b": Camera(), "c": {url}, "n": 1, "x": None, "t": True, "f": 1.5}
    masked = mask_value(event)
    assert SECRET not in repr(masked)
    assert repr(masked).count("***@host/x") == 5
    assert (masked["n"], masked["x"], masked["t"], masked["f"]) == (1, None, True, 1.5)


# What the configuration accepts as a URL: no space, no control character.
PASSWORDS = st.text(st.characters(min_codepoint=0x21, exclude_categories=("Cs", "Cc", "Z")), max_size=20)


@given(PASSWORDS, PASSWORDS)
def test_a_password_before_an_at_sign_is_never_shown(before: str, after: str) -> None:
    url = f"rtsp://user:{before}{SECRET}{after}@host/live"
    assert mask_url(url) == "rtsp://***@host/live"
    assert SECRET not in mask_text(f"failed: {url}")
