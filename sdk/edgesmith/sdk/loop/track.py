"""Ids that stay with objects: the association of ByteTrack (Zhang et al., 2022), in numpy.

Boxes of low score are mostly objects behind others. They are not thrown away: what the boxes of high
score leave of the tracks is offered to them, and only boxes of high score begin a track (algorithm 1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.errors import ConfigError
from edgesmith.sdk.loop import kalman
from edgesmith.sdk.loop.assignment import assign
from edgesmith.sdk.results import Detections

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


class TrackSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How boxes become tracks. Scores and overlaps (intersection over union) are 0..1.

    Attributes:
        low: boxes that do not score above it are left out.
        high: boxes above it take part in the first association; the rest in the second.
        birth: boxes above it, that belong to no track, begin one.
        keep: steps (frames) that a track outlives without a box.
        overlap: least overlap with where the track should be, in the first association.
        overlap_low: the same in the second, where boxes are less sure.
        overlap_new: the same for tracks that were seen once.
        by_class: boxes continue only tracks of their own class.

    Raises:
        ConfigError: a value is out of range, or the scores are not in the order low, high, birth.
    """

    low: float = 0.1
    high: float = 0.5
    birth: float = 0.6
    keep: int = 30
    overlap: float = 0.2
    overlap_low: float = 0.5
    overlap_new: float = 0.3
    by_class: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= self.birth <= 1:
            raise ConfigError(
                f"track: low {self.low:g}, high {self.high:g}, birth {self.birth:g} must rise within 0..1"
            )
        for name in ("overlap", "overlap_low", "overlap_new"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ConfigError(f"track: {name} is {value:g}; it must be between 0 and 1")
        if self.keep < 0:
            raise ConfigError(f"track: keep is {self.keep}; it is a number of frames")


@dataclass(slots=True)
class _Tracks:
    """All tracks, an entry a row; ``ids`` is 0 until a track is confirmed by a second box."""

    means: Floats
    covariances: Floats
    labels: Ints
    ids: Ints
    missed: Ints

    @classmethod
    def none(cls) -> _Tracks:
        nothing = np.empty(0, np.int64)
        return cls(np.empty((0, 8)), np.empty((0, 8, 8)), nothing, nothing.copy(), nothing.copy())

    def keep(self, rows: Flags) -> None:
        """Forget the other rows."""
        self.means, self.covariances = self.means[rows], self.covariances[rows]
        self.labels, self.ids, self.missed = self.labels[rows], self.ids[rows], self.missed[rows]

    def add(self, means: Floats, covariances: Floats, labels: Ints, ids: Ints) -> None:
        """New rows at the end."""
        self.means = np.concatenate([self.means, means])
        self.covariances = np.concatenate([self.covariances, covariances])
        self.labels = np.concatenate([self.labels, labels])
        self.ids = np.concatenate([self.ids, ids])
        self.missed = np.concatenate([self.missed, np.zeros(len(ids), np.int64)])


class Tracker:
    """Gives the objects of one camera ids that stay with them.

        tracker = Tracker()
        for frame in frames:
            tracked = tracker.update(detector(frame, score=0.1))

    Ids count from 1. An object is reported from its second box on (in the first frame at once), so
    that a single false box never has an id. The same boxes always give the same ids.
    """

    def __init__(self, settings: TrackSettings | None = None) -> None:
        self.settings = settings or TrackSettings()
        self._tracks = _Tracks.none()
        self._last_id = 0
        self._begun = False

    def __len__(self) -> int:
        """Tracks that are remembered, those without a box now included."""
        return int((self._tracks.ids > 0).sum())

    def update(self, detections: Detections, *, steps: int = 1) -> Detections:
        """The detections that belong to a track, in their order, with ``track_ids``.

        Args:
            detections: of one frame, those of low score too.
            steps: frames since the last update, more than 1 where some were passed over.
        """
        boxes = np.asarray(detections.boxes, np.float64)
        scores = detections.scores
        labels = detections.labels.astype(np.int64)
        steps = max(1, steps)
        self._predict(steps)
        # What had no box last time is hidden; a box of low score there is more likely a false one.
        seen = self._tracks.missed == steps
        owner = self._associate(boxes, scores, labels, seen)
        matched = np.flatnonzero(owner >= 0)
        self._correct(boxes, owner, matched)
        self._begin(boxes, scores, labels, owner)
        ids = np.zeros(len(owner), np.int64)
        # Tracks that began now have no id yet, save in the first frame.
        ids[owner >= 0] = self._tracks.ids[owner[owner >= 0]]
        self._forget()
        shown = ids > 0
        return replace(detections[shown], track_ids=ids[shown].astype(np.int32))

    def _predict(self, steps: int) -> None:
        tracks = self._tracks
        # Beyond its memory nothing of a track is left to predict.
        for _ in range(min(steps, self.settings.keep + 1)):
            # What is hidden neither grows nor shrinks.
            tracks.means[tracks.missed > 0, 7] = 0.0
            tracks.means, tracks.covariances = kalman.predict(tracks.means, tracks.covariances)
        tracks.missed += steps

    def _associate(self, boxes: Floats, scores: NDArray[np.float32], labels: Ints, seen: Flags) -> Ints:
        """The track of each box, -1 for none."""
        settings, tracks = self.settings, self._tracks
        owner = np.full(len(boxes), -1, np.int64)
        free = np.ones(len(tracks.ids), np.bool_)
        high, low = scores > settings.high, (scores > settings.low) & (scores <= settings.high)
        overlaps = _overlaps(kalman.to_boxes(tracks.means), boxes)
        if settings.by_class:
            overlaps[tracks.labels[:, None] != labels[None, :]] = 0.0
        confirmed = tracks.ids > 0
        for among, of, least in (
            (confirmed, high, settings.overlap),
            (confirmed & seen, low, settings.overlap_low),
            (~confirmed, high, settings.overlap_new),
        ):
            rows, columns = np.flatnonzero(among & free), np.flatnonzero(of & (owner < 0))
            at, to = assign(1.0 - overlaps[np.ix_(rows, columns)], 1.0 - least)
            owner[columns[to]] = rows[at]
            free[rows[at]] = False
        return owner

    def _correct(self, boxes: Floats, owner: Ints, matched: NDArray[np.intp]) -> None:
        tracks, rows = self._tracks, owner[matched]
        measured = kalman.to_state(boxes[matched])
        tracks.means[rows], tracks.covariances[rows] = kalman.correct(
            tracks.means[rows], tracks.covariances[rows], measured
        )
        tracks.missed[rows] = 0
        new = rows[tracks.ids[rows] == 0]
        tracks.ids[new] = self._next_ids(len(new))

    def _begin(self, boxes: Floats, scores: NDArray[np.float32], labels: Ints, owner: Ints) -> None:
        born = np.flatnonzero((owner < 0) & (scores > self.settings.birth))
        first = not self._begun
        self._begun = True
        ids = self._next_ids(len(born)) if first else np.zeros(len(born), np.int64)
        owner[born] = len(self._tracks.ids) + np.arange(len(born))
        self._tracks.add(*kalman.begin(kalman.to_state(boxes[born])), labels[born], ids)

    def _forget(self) -> None:
        tracks = self._tracks
        # A track that was seen once and not again was a false box.
        tracks.keep(np.where(tracks.ids > 0, tracks.missed <= self.settings.keep, tracks.missed == 0))

    def _next_ids(self, count: int) -> Ints:
        ids = self._last_id + 1 + np.arange(count, dtype=np.int64)
        self._last_id += count
        return ids


def _overlaps(a: Floats, b: Floats) -> Floats:
    """Intersection over union of boxes ``(n, 4)`` and ``(m, 4)``: ``(n, m)``."""
    top = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(bottom - top, 0.0, None), axis=2)
    areas = np.prod(a[:, 2:] - a[:, :2], axis=1)[:, None] + np.prod(b[:, 2:] - b[:, :2], axis=1)[None, :]
    return np.asarray(shared / np.maximum(areas - shared, 1e-9))
