"""What becomes known of answers later."""

import hashlib


def key_of(request_id: str) -> int:
    """64 bits that stand for a request's id, or for ID/i of a list's item."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest())
