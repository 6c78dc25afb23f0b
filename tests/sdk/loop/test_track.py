"""Ids stay with objects: scripted scenes, with the ids that each object got."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgesmith.sdk import Detections, Detector
from edgesmith.sdk.errors import ConfigError
from edgesmith.sdk.loop import kalman
from edgesmith.sdk.loop.assignment import assign
from edgesmith.sdk.loop.capture_loop import CaptureLoop
from edgesmith.sdk.loop.track import Tracker, TrackSettings

MakeBundle = Callable[..., Path]
Box = tuple[float, float, float, float]
# An object of a scene: name, centre x, centre y, and what else differs from 40 x 80, score 0.9, class 0.
Seen = tuple[str, float, float, dict[str, Any]]


def detections(objects: Iterable[Seen]) -> Detections:
    boxes, scores, labels = [], [], []
    for _, x, y, more in objects:
        width, height = more.get("size", (40, 80))
        boxes.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
        scores.append(more.get("score", 0.9))
        labels.append(more.get("label", 0))
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int32),
        ("person", "dog"),
    )


def followed(scene: Iterable[list[Seen]], settings: TrackSettings | None = None) -> dict[str, list[int]]:
    """The ids that each object had in turn, 0 where it was not reported."""
    tracker, ids = Tracker(settings), {}  # type: ignore[var-annotated]
    for objects in scene:
        given = detections(objects)
        tracked = tracker.update(given)
        assert tracked.track_ids is not None
        assert len(set(tracked.track_ids.tolist())) == len(tracked)
        by_box = dict(zip(map(tuple, tracked.boxes.tolist()), tracked.track_ids.tolist(), strict=True))
        for (name, *_), box in zip(objects, given.boxes.tolist(), strict=True):
            ids.setdefault(name, []).append(by_box.get(tuple(box), 0))
    return ids


def jitter(seed: int, count: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(0, 1.5, (count, 4))


def crossing(hidden: range | None = None, low: range | None = None) -> list[list[Seen]]:
    """Two people walk past each other, one a little in front; the one behind may be hidden or hardly seen."""
    scene = []
    for n, (a, b, c, d) in enumerate(jitter(1, 60)):
        objects: list[Seen] = [("left", 40 + 6 * n + a, 200 + b, {})]
        behind: dict[str, Any] = {"score": 0.25} if low is not None and n in low else {}
        if hidden is None or n not in hidden:
            objects.append(("right", 400 - 6 * n + c, 186 + d, behind))
        scene.append(objects)
    return scene


@pytest.mark.parametrize(
    "scene",
    [crossing(), crossing(hidden=range(27, 35)), crossing(low=range(26, 36))],
    ids=["both seen", "one hidden behind the other", "one hardly seen"],
)
def test_people_who_cross_keep_their_ids(scene: list[list[Seen]]) -> None:
    ids = followed(scene)
    assert set(ids["left"]) == {1}
    assert set(ids["right"]) == {2}


def test_boxes_of_low_score_continue_a_track_and_begin_none() -> None:
    fades = [[("ghost", 100.0 + n, 100.0, {"score": 0.9 if n < 5 else 0.2})] for n in range(20)]
    assert followed(fades)["ghost"] == [1] * 20
    never = [[("ghost", 100.0 + n, 100.0, {"score": 0.3})] for n in range(20)]
    assert followed(never)["ghost"] == [0] * 20
    below = [[("ghost", 100.0 + n, 100.0, {"score": 0.9 if n < 5 else 0.05})] for n in range(20)]
    assert followed(below)["ghost"] == [1] * 5 + [0] * 15


def hidden_for(steps: int) -> list[list[Seen]]:
    """A walker who is hidden for some steps and goes on at the same pace."""
    seen: list[list[Seen]] = [[("walker", 50.0 + 4 * n, 200.0, {})] for n in range(80)]
    return [[] if 20 <= n < 20 + steps else objects for n, objects in enumerate(seen)]


def test_an_object_behind_something_comes_out_with_its_id() -> None:
    assert set(followed(hidden_for(20))["walker"]) == {1}


def test_a_lost_track_expires() -> None:
    settings = TrackSettings(keep=10)
    assert set(followed(hidden_for(10), settings)["walker"]) == {1}
    ids = followed(hidden_for(11), settings)["walker"]
    assert ids[:20] == [1] * 20
    # A new object: reported from its second box on.
    assert ids[20:] == [0] + [2] * (len(ids) - 21)
    tracker = Tracker(settings)
    for objects in hidden_for(11)[:31]:
        tracker.update(detections(objects))
    assert len(tracker) == 0


def test_one_false_box_has_no_id() -> None:
    scene: list[list[Seen]] = [[("walker", 50.0 + 4 * n, 200.0, {})] for n in range(30)]
    scene[10].append(("flicker", 500.0, 50.0, {}))
    scene[20].append(("flicker", 520.0, 60.0, {}))
    ids = followed(scene)
    assert ids["flicker"] == [0, 0]
    assert set(ids["walker"]) == {1}
    late: list[list[Seen]] = [
        [*objects, *([("late", 300.0, 300.0, {})] if n >= 5 else [])] for n, objects in enumerate(scene)
    ]
    assert followed(late)["late"] == [0] + [2] * 24


def test_a_class_continues_only_its_own_tracks() -> None:
    scene: list[list[Seen]] = [[("it", 100.0, 100.0, {"label": int(n >= 10)})] for n in range(20)]
    assert followed(scene)["it"] == [1] * 10 + [0] + [2] * 9
    assert set(followed(scene, TrackSettings(by_class=False))["it"]) == {1}


def test_frames_that_were_passed_over_are_steps_of_the_motion() -> None:
    """A fast walker of whom every sixth frame is seen: 48 pixels between two boxes of 40."""
    walk: list[list[Seen]] = [[("walker", 8.0 * n, 200.0, {})] for n in range(120)]
    ids: list[list[int]] = []
    for steps in (1, 6):
        tracker = Tracker()
        for objects in walk[:12]:
            tracker.update(detections(objects))
        seen = [tracker.update(detections(objects), steps=steps) for objects in walk[17::6]]
        ids.append([item.track_id or 0 for found in seen for item in found])
    assert set(ids[1]) == {1}
    assert set(ids[0]) != {1}


def test_the_same_boxes_give_the_same_ids() -> None:
    rng = np.random.default_rng(7)
    scene: list[list[Seen]] = []
    places = rng.uniform(50, 600, (12, 2))
    for _ in range(40):
        places += rng.normal(0, 5, places.shape)
        shown = rng.random(12) > 0.2
        scene.append(
            [
                (f"{n}", float(x), float(y), {"score": float(rng.uniform(0.05, 1.0))})
                for n, ((x, y), there) in enumerate(zip(places, shown, strict=True))
                if there
            ]
        )
    first, second = followed(scene), followed(scene)
    assert first == second
    assert max(max(ids) for ids in first.values()) >= 12


def test_nothing_is_a_frame_too_and_order_and_extras_stay() -> None:
    tracker = Tracker()
    assert len(tracker.update(Detections.empty())) == 0
    objects: list[Seen] = [("a", 100, 100, {"score": 0.7}), ("b", 300, 100, {"score": 0.95, "label": 1})]
    tracker.update(detections(objects))
    tracked = tracker.update(detections(objects))
    assert [(d.name, d.track_id) for d in tracked] == [("person", 1), ("dog", 2)]
    assert tracked.names == ("person", "dog")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"low": 0.7}, "must rise within 0..1"),
        ({"high": 0.9}, "must rise"),
        ({"overlap": 0.0}, "overlap is 0"),
        ({"keep": -1}, "keep is -1"),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrackSettings(**wrong)


def test_states_are_boxes_and_a_filter_learns_a_pace() -> None:
    boxes = np.array([[10.0, 20.0, 50.0, 100.0], [0.0, 0.0, 3.0, 4.0]])
    np.testing.assert_allclose(kalman.to_boxes(kalman.to_state(boxes)), boxes)
    means, covariances = kalman.begin(kalman.to_state(boxes))
    for step in range(1, 40):
        means, covariances = kalman.predict(means, covariances)
        means, covariances = kalman.correct(means, covariances, kalman.to_state(boxes + 2.0 * step))
    np.testing.assert_allclose(means[:, 4:6], 2.0, atol=0.1)
    ahead = kalman.to_boxes(kalman.predict(means, covariances)[0])
    np.testing.assert_allclose(ahead, boxes + 2.0 * 40, atol=0.6)
    # Covariances stay symmetric and positive.
    np.testing.assert_allclose(covariances, np.swapaxes(covariances, 1, 2), atol=1e-6)
    assert (np.linalg.eigvalsh(covariances) > 0).all()


def best_by_trying(costs: NDArray[np.float64], limit: float) -> float:
    """The least sum of ``cost - limit`` over all ways to pair."""
    n, m = costs.shape
    wide = np.concatenate([np.minimum(costs - limit, 0.0), np.zeros((n, n))], axis=1)
    return min(
        (
            sum(wide[row, column] for row, column in enumerate(p))
            for p in itertools.permutations(range(n + m), n)
        ),
        default=0.0,
    )


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 4).flatmap(
        lambda n: st.integers(0, 4).flatmap(
            lambda m: st.lists(
                st.lists(st.integers(-4, 12), min_size=m, max_size=m), min_size=n, max_size=n
            ).map(lambda rows: np.array(rows, np.float64).reshape(n, m) / 8)
        )
    ),
    st.integers(0, 10),
)
def test_the_assignment_is_the_best_there_is(costs: NDArray[np.float64], eighths: int) -> None:
    limit = eighths / 8
    rows, columns = assign(costs, limit)
    assert len(set(rows.tolist())) == len(rows)
    assert len(set(columns.tolist())) == len(columns)
    assert rows.tolist() == sorted(rows.tolist())
    assert (costs[rows, columns] < limit).all()
    assert (costs[rows, columns] - limit).sum() == pytest.approx(best_by_trying(costs, limit))


def test_a_larger_assignment_beats_every_greedy_one() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        costs = rng.random((25, 30))
        rows, columns = assign(costs, 0.9)
        left, total = costs.copy(), 0.0
        while left.min() < 0.9:
            row, column = np.unravel_index(left.argmin(), left.shape)
            total += left[row, column] - 0.9
            left[row, :] = left[:, column] = 1.0
        assert (costs[rows, columns] - 0.9).sum() <= total + 1e-9


def test_a_loop_tracks_each_camera_on_its_own(make_bundle: MakeBundle, camera: Any) -> None:
    class Red(camera):  # type: ignore[misc]
        """The bundle finds one box, whose score is the red channel; it fades below the threshold."""

        def frames(self) -> Any:
            for frame in super().frames():
                red = 204 if frame.sequence < 5 else 46
                object.__setattr__(frame, "image", np.full((32, 32, 3), (0, 0, red), np.uint8))
                yield frame

    with Detector.load(make_bundle(), backend="cpu") as detector:
        cameras = [Red("a", count=10), Red("b", count=10)]
        with CaptureLoop(cameras, detector, policy="every", track=True) as loop:
            results = list(loop)
    for name in ("a", "b"):
        found = [[(d.track_id, d.score > 0.25) for d in r.detections] for r in results if r.camera == name]
        # 0.18 is below the bundle's 0.25: without the track it would not be there.
        assert found == [[(1, True)]] * 5 + [[(1, False)]] * 5
    assert "track" in results[0].stages_ms


def test_only_detectors_track(camera: Any, reading: Any) -> None:
    with (
        CaptureLoop(camera(count=1), reading(), policy="every", track=True) as loop,
        pytest.raises(ConfigError, match="track goes with detectors: this model answers int"),
    ):
        next(loop)
