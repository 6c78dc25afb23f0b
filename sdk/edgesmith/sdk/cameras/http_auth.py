"""The answer to an HTTP server that asks who is there (RFC 7617 Basic, RFC 7616 Digest)."""

from __future__ import annotations

import base64
import hashlib
import secrets
import urllib.request
from collections.abc import Sequence

ALGORITHMS = {"MD5": "md5", "SHA-256": "sha256"}


def authorization(
    challenges: Sequence[str], *, user: str, password: str, target: str, cnonce: str | None = None
) -> str | None:
    """The ``Authorization`` header for a GET, or None where no challenge can be answered.

    Digest goes before Basic, which shows the password to whoever listens.

    Args:
        challenges: the ``WWW-Authenticate`` headers.
        user, password: as they are, decoded.
        target: path and query of the request.
        cnonce: the client's random text; drawn where left out.
    """
    basic = None
    for challenge in challenges:
        scheme, _, rest = challenge.strip().partition(" ")
        if scheme.lower() == "digest":
            answer = _digest(rest, user, password, target, cnonce or secrets.token_hex(16))
            if answer is not None:
                return answer
        elif scheme.lower() == "basic":
            basic = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    return basic


def _digest(challenge: str, user: str, password: str, target: str, cnonce: str) -> str | None:
    fields = urllib.request.parse_keqv_list(urllib.request.parse_http_list(challenge))
    name = fields.get("algorithm", "MD5")
    algorithm = ALGORITHMS.get(name.upper())
    realm, nonce = fields.get("realm"), fields.get("nonce")
    if algorithm is None or realm is None or nonce is None:
        return None

    def digest(text: str) -> str:
        return hashlib.new(algorithm, text.encode(), usedforsecurity=False).hexdigest()

    secret, request = digest(f"{user}:{realm}:{password}"), digest(f"GET:{target}")
    parts = {"username": user, "realm": realm, "nonce": nonce, "uri": target}
    offered = [q.strip() for q in fields.get("qop", "").split(",") if q.strip()]
    if "auth" in offered:
        parts["response"] = digest(f"{secret}:{nonce}:00000001:{cnonce}:auth:{request}")
        parts["cnonce"] = cnonce
    elif not offered:
        parts["response"] = digest(f"{secret}:{nonce}:{request}")
    else:
        return None
    if "opaque" in fields:
        parts["opaque"] = fields["opaque"]
    text = ", ".join(f'{key}="{value}"' for key, value in parts.items())
    return f"Digest {text}, algorithm={name}" + (", qop=auth, nc=00000001" if offered else "")
