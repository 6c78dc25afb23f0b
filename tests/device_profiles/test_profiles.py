"""Every device profile loads, gives its sources and does not contradict itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest

from edgesmith.device_profiles import DeviceProfile, Figure, PowerMode, list_profiles, load_profile

NAMES = (
    "agx-orin-32gb", "agx-orin-64gb", "agx-xavier", "generic", "jetson-nano", "orin-nano-4gb",
    "orin-nano-8gb", "orin-nx-16gb", "orin-nx-8gb", "rtx-gpu", "thor-t4000", "thor-t5000", "xavier-nx",
)  # fmt: skip
WITHOUT_FIGURES = {"generic", "rtx-gpu"}
BOARDS = [n for n in NAMES if n not in WITHOUT_FIGURES]
MODES = [(n, m.name) for n in BOARDS for m in load_profile(n).modes]
# How many times the dense INT8 (FP16 for fp16-dense) rate the stated number format runs at.
TIMES = {"int8-dense": 1, "int8-sparse": 2, "fp4-sparse": 4, "fp16-dense": 1}


def figures(struct: msgspec.Struct) -> Iterator[tuple[str, Figure]]:
    for field in struct.__struct_fields__:
        value = getattr(struct, field)
        if isinstance(value, Figure):
            yield field, value
    if isinstance(struct, DeviceProfile):
        for mode in struct.modes:
            yield from ((f"{mode.name}.{field}", figure) for field, figure in figures(mode))


def known(figure: Figure | None) -> float:
    assert figure is not None
    return figure.value


def test_the_list_is_what_is_there() -> None:
    assert list_profiles() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_loads(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.title
    assert {"fp32", "fp16"} <= set(profile.precisions)
    assert bool(profile.modes) == (name not in WITHOUT_FIGURES)
    with pytest.raises(AttributeError):
        profile.title = "x"  # type: ignore[misc]


@pytest.mark.parametrize("name", NAMES)
def test_each_figure_has_its_source_and_each_source_its_figure(name: str) -> None:
    profile = load_profile(name)
    used = {figure.source for _, figure in figures(profile)} | {s.source for s in profile.software}
    assert used == set(profile.sources)
    assert all(len(text.split()) >= 4 for text in profile.sources.values())
    for field, figure in figures(profile):
        assert figure.value > 0 or field == "dla_cores", field
        if figure.source == "recall":
            assert figure.status == "unverified", field


@pytest.mark.parametrize("name", BOARDS)
def test_units_go_together(name: str) -> None:
    profile = load_profile(name)
    per_sm = 64 if profile.family == "xavier" else 128
    assert known(profile.cuda_cores) == known(profile.sms) * per_sm
    assert (profile.int8_ops_per_clock is None) == ("int8" not in profile.precisions)
    assert ("fp8" in profile.precisions) == (profile.family == "thor")
    assert (
        profile.compute_capability
        == {"orin": "8.7", "thor": "11.0", "xavier": "7.2", "nano": "5.3"}[profile.family]
    )
    if not known(profile.dla_cores):
        assert not any(s.dla for s in profile.software)
    modes = [mode.name for mode in profile.modes]
    assert modes[0] == "base"
    assert len(set(modes)) == len(modes)


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_peaks_are_the_product_of_their_factors(name: str, mode: str) -> None:
    profile = load_profile(name)
    at = profile.mode(mode)
    clocks = known(profile.sms) * at.gpu_mhz.value * 1e6
    fp16 = clocks * known(profile.fp16_ops_per_clock) / 1e12
    assert at.fp16_tflops.value == pytest.approx(fp16, rel=0.01)
    if profile.int8_ops_per_clock is not None:
        assert known(at.int8_tops) == pytest.approx(
            clocks * known(profile.int8_ops_per_clock) / 1e12, rel=0.01
        )
    assert at.watts_min.value < at.watts_max.value
    for peak, rate in (
        (at.fp16_tflops, profile.fp16_ops_per_clock),
        (at.int8_tops, profile.int8_ops_per_clock),
    ):
        if peak is not None and rate is not None:
            doubtful = "unverified" in (at.gpu_mhz.status, rate.status)
            assert peak.status == ("unverified" if doubtful else "derived")


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_peaks_agree_with_what_the_maker_states(name: str, mode: str) -> None:
    profile = load_profile(name)
    at = profile.mode(mode)
    dense = at.fp16_tflops if at.stated.kind == "fp16-dense" else at.int8_tops
    gpu = known(dense) * TIMES[at.stated.kind]
    if at.stated.covers == "gpu":
        assert gpu == pytest.approx(at.stated.value, rel=0.03)
    else:
        # What is left is the DLA's share: something, and less than the half of it.
        assert known(profile.dla_cores) > 0
        assert 0.45 * at.stated.value < gpu < at.stated.value


def test_super_modes_are_faster() -> None:
    with_super = {name for name, mode in MODES if mode == "super"}
    assert with_super == {"orin-nano-4gb", "orin-nano-8gb", "orin-nx-8gb", "orin-nx-16gb"}
    for name in with_super:
        base, faster = load_profile(name).modes
        for field in ("gpu_mhz", "fp16_tflops", "int8_tops", "stated", "watts_max"):
            assert getattr(faster, field).value > getattr(base, field).value, (name, field)


def test_boards_whose_tensorrt_is_too_old_say_why() -> None:
    reasons = {n: load_profile(n).unsupported for n in NAMES}
    assert {n for n, why in reasons.items() if why} == {"xavier-nx", "agx-xavier", "jetson-nano"}
    for name in ("xavier-nx", "agx-xavier"):
        assert "TensorRT 8.5" in (reasons[name] or "")
        assert "opsets up to 17" in (reasons[name] or "")
    for name in BOARDS:
        oldest_supported = any(not s.tensorrt.startswith("8.") for s in load_profile(name).software)
        assert oldest_supported == (reasons[name] is None)


def test_a_mode_is_found_by_name() -> None:
    nano = load_profile("orin-nano-8gb")
    assert nano.mode() is nano.modes[0]
    assert isinstance(nano.mode("super"), PowerMode)
    with pytest.raises(LookupError, match="has no mode 'turbo'; it has base, super"):
        nano.mode("turbo")
    with pytest.raises(LookupError, match="figures are not known"):
        load_profile("generic").mode()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("orin-nano", "did you mean orin-nano-4gb or orin-nano-8gb"),
        ("nx", "did you mean orin-nx-16gb or orin-nx-8gb or xavier-nx"),
        ("Orin_Nano_8GB", "did you mean orin-nano-8gb"),
        ("orin-nx-16", "did you mean orin-nx-16gb"),
        ("thor", "did you mean thor-t"),
        ("raspberry-pi-5", "there are agx-orin-32gb, .* xavier-nx$"),
        ("", "there are agx-orin"),
        ("../orin-nano-8gb", "did you mean orin-nano-8gb"),
        ("orin_nano_8gb", "did you mean orin-nano-8gb"),
    ],
)
def test_an_unknown_name_is_met_with_close_ones(name: str, message: str) -> None:
    with pytest.raises(LookupError, match=message) as caught:
        load_profile(name)
    assert repr(name) in str(caught.value)


def test_it_is_the_lowest_layer() -> None:
    program = """
import sys
import edgesmith.device_profiles as profiles
profiles.load_profile("generic")
print([m for m in sys.modules if m.startswith("edgesmith.") and "device_profiles" not in m])
print([m for m in ("numpy", "cv2", "rich", "click") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"
