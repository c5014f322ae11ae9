"""What tells one set of clips from another, without reading the audio."""

import hashlib

from sotto.data.hub import HubListing
from sotto.data.sources import ClipSource


def fingerprint(source: ClipSource) -> str:
    """A digest of all names, transcripts and file sizes; for a hub dataset its name and what was chosen of it."""
    digest = hashlib.sha256()
    if isinstance(source.listing, HubListing):
        digest.update(repr((source.listing.identity, source.listing.positions)).encode())
    else:
        for reference in source.listing:
            size = reference.path.stat().st_size if reference.path is not None and reference.path.is_file() else 0
            digest.update(repr((reference.name, reference.text, size)).encode())
    return digest.hexdigest()
