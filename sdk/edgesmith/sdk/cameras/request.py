"""What ``open_camera`` was asked for, handed to the kind of source that the address names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from edgesmith.sdk.cameras.book import OnState
from edgesmith.sdk.cameras.live import LiveCamera
from edgesmith.sdk.cameras.options import LiveOptions, read_options
from edgesmith.sdk.cameras.session import Session
from edgesmith.sdk.errors import ConfigError

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True)
class Request:
    """One call of ``open_camera``; ``source`` may hold credentials, ``shown`` never does."""

    source: str = field(repr=False)
    shown: str
    name: str | None = None
    size: tuple[int, int] | None = None
    fps: float | None = None
    on_state: OnState | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def read(self, kind: type[T], *, extra: Mapping[str, str] | None = None) -> T:
        """The options as their struct; ``extra`` are those that stand in the address itself, as text.

        Raises:
            ConfigError: an option is unknown, or its value cannot be used.
        """
        if extra:
            return read_options(kind, {**extra, **self.options}, source=self.shown, strict=False)
        return read_options(kind, self.options, source=self.shown)

    def refuse(self, **wishes: object) -> None:
        """Say that a size or rate cannot be asked of this kind of source.

        Raises:
            ConfigError: one was.
        """
        for name, value in wishes.items():
            if value is not None:
                raise ConfigError(
                    f"{self.shown}: {name} cannot be asked of this kind of source: leave it out"
                )

    def live(
        self, session: Session, options: LiveOptions, *, usual_frozen_ms: float, length: int | None = None
    ) -> LiveCamera:
        """The camera over a session."""
        return LiveCamera(
            self.name or self.shown,
            session,
            options=options,
            usual_frozen_ms=usual_frozen_ms,
            fps=self.fps,
            size=self.size,
            length=length,
            on_state=self.on_state,
        )
