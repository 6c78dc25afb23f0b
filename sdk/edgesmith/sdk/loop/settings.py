"""The arguments of a capture loop, checked and filled in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgesmith.sdk.cameras.base import Camera
from edgesmith.sdk.errors import ConfigError
from edgesmith.sdk.loop.mailbox import POLICIES, Policy
from edgesmith.sdk.loop.track import TrackSettings


def policies_of(
    policy: Policy | Sequence[Policy], cameras: Sequence[Camera], max_age_ms: float | None
) -> tuple[Policy, ...]:
    """The policy of each camera.

    Raises:
        ConfigError: there is no camera, no such policy, not one for each, or no age that goes with it.
    """
    if not cameras:
        raise ConfigError("a capture loop needs at least one camera")
    several: tuple[Policy, ...] = (policy,) * len(cameras) if isinstance(policy, str) else tuple(policy)
    for name in several:
        if name not in POLICIES:
            raise ConfigError(f"there is no policy {name!r}: {', '.join(POLICIES)}")
    if len(several) != len(cameras):
        raise ConfigError(f"{len(several)} policies for {len(cameras)} cameras: one for all, or one for each")
    if max_age_ms is not None and (max_age_ms <= 0 or "every" in several):
        raise ConfigError(f'max_age_ms {max_age_ms:g}: it is above 0, and goes with policy "latest" alone')
    return several


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """The names, those that came before with a number."""
    out: list[str] = []
    for name in names:
        number, candidate = 1, name
        while candidate in out:
            number += 1
            candidate = f"{name} ({number})"
        out.append(candidate)
    return tuple(out)


def track_settings(track: bool | TrackSettings, model: Any, score: float | None) -> TrackSettings | None:
    """The settings that go with ``track``; None for no tracking."""
    if isinstance(track, TrackSettings):
        return track
    if not track:
        return None
    threshold = getattr(getattr(model, "nms", None), "score", None) if score is None else score
    if threshold is None:
        return TrackSettings()
    # What passes the threshold may begin a track, so the same objects are reported as without one.
    return TrackSettings(low=min(0.1, threshold), high=threshold, birth=threshold)
