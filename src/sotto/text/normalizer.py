"""A text normalizer has a name and a version, so that an error rate can say how it was taken."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Normalizer:
    """A named, versioned function from text to text, applied to references and hypotheses alike.

    `version` is raised whenever the same text may come out differently; `source` names the library,
    with its version, that does the work (empty where Sotto does it itself).
    """

    name: str
    version: str
    function: Callable[[str], str]
    source: str = ""

    def __call__(self, text: str) -> str:
        """Normalize `text`. Words come out separated by single spaces, with none at either end."""
        return " ".join(self.function(text).split())

    def describe(self) -> str:
        """The text to print beside a number: `english v1 (transformers 5.23.0)`."""
        return f"{self.name} v{self.version}" + (f" ({self.source})" if self.source else "")
