from __future__ import annotations

import pytest

from edgesmith.sdk.cameras.http_auth import authorization

# The example of RFC 7616, section 3.9.1.
NONCE = "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v"
CNONCE = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"
OPAQUE = "FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"
ANSWERS = {
    "MD5": "8ca523f5e9506fed4657c9700eebdbec",
    "SHA-256": "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1",
}


def challenge(algorithm: str, qop: str = "auth, auth-int") -> str:
    return (
        f'Digest realm="http-auth@example.org", qop="{qop}", algorithm={algorithm}, '
        f'nonce="{NONCE}", opaque="{OPAQUE}"'
    )


def answer(*challenges: str) -> str | None:
    return authorization(
        challenges, user="Mufasa", password="Circle of Life", target="/dir/index.html", cnonce=CNONCE
    )


@pytest.mark.parametrize("algorithm", list(ANSWERS))
def test_digest_answers_as_the_standard_does(algorithm: str) -> None:
    text = answer(challenge(algorithm))
    assert text is not None
    assert text.startswith('Digest username="Mufasa", realm="http-auth@example.org"')
    for part in (
        f'response="{ANSWERS[algorithm]}"', f'opaque="{OPAQUE}"', f'cnonce="{CNONCE}"',
        'uri="/dir/index.html"', f"algorithm={algorithm}", "qop=auth", "nc=00000001",
    ):  # fmt: skip
        assert part in text


def test_digest_goes_before_basic_and_basic_before_nothing() -> None:
    basic = 'Basic realm="camera"'
    assert answer(basic) == "Basic TXVmYXNhOkNpcmNsZSBvZiBMaWZl"
    for order in ((basic, challenge("MD5")), (challenge("MD5"), basic)):
        text = answer(*order)
        assert text is not None
        assert text.startswith("Digest ")
    assert answer(challenge("SHA-512-256"), basic) == answer(basic)
    assert answer(challenge("MD5", "auth-int")) is None
    assert answer("Bearer realm=x") is None
    assert answer() is None


def test_servers_of_before_qop_are_answered() -> None:
    text = answer('Digest realm="camera", nonce="abc"')
    assert text is not None
    assert "qop" not in text
    assert "cnonce" not in text
