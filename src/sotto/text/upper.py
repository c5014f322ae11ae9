"""Words as they are said, in upper case: for recognisers whose vocabulary has no lower case."""

from sotto.text.normalizer import Normalizer
from sotto.text.plain import plain


def upper_normalizer() -> Normalizer:
    """What `plain` gives, in upper case."""
    return Normalizer("upper", "1", lambda text: plain(text).upper())
