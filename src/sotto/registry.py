"""What a configuration type stands for: its short name in recipes and the function that carries it out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sotto.configuration import nearest, parse, to_plain
from sotto.errors import SottoError

Handler = TypeVar("Handler", bound=Callable[..., Any])


@dataclass
class Registry(Generic[Handler]):
    """Configuration types by short name, and a handler for each type. `kind` is the word used in messages."""

    kind: str
    types: dict[str, type] = field(default_factory=dict)
    handlers: dict[type, Handler] = field(default_factory=dict)

    def register(self, name: str, configuration: type) -> Callable[[Handler], Handler]:
        """Decorator: the function that carries out a `configuration`, which recipes call `name`."""

        def decorate(handler: Handler) -> Handler:
            self.types[name] = configuration
            self.handlers[configuration] = handler
            return handler

        return decorate

    def parse(self, entry: object, where: str) -> Any:
        """A list entry of a recipe, `{name: {key: value}}` or just `name`, as its configuration."""
        if isinstance(entry, str):
            entry = {entry: {}}
        if not isinstance(entry, Mapping) or len(entry) != 1:
            raise SottoError(f"{where}: expected one {self.kind} with its settings, found {entry!r}")
        ((name, values),) = entry.items()
        if name not in self.types:
            raise SottoError(f"{where}: unknown {self.kind} '{name}'{nearest(str(name), self.types)}")
        return parse(self.types[name], {} if values is None else values, f"{where}.{name}")

    def name_of(self, configuration: object) -> str:
        return next(name for name, kind in self.types.items() if kind is type(configuration))

    def to_plain(self, configurations: Iterable[object]) -> list[dict[str, Any]]:
        """The inverse of `parse` for a list of entries."""
        return [{self.name_of(each): to_plain(each)} for each in configurations]

    def handler(self, configuration: object) -> Handler:
        return self.handlers[type(configuration)]
