"""Profiles by name, with an error that the command line can end on."""

from __future__ import annotations

import pytest

from edgesmith.device_profiles import list_profiles, load_profile
from edgesmith.sdk.board.profiles import profile
from edgesmith.sdk.errors import DeviceProfileError


def test_every_profile_is_found() -> None:
    for name in list_profiles():
        assert profile(name) == load_profile(name)


def test_an_unknown_name_is_ours_to_say() -> None:
    with pytest.raises(DeviceProfileError) as caught:
        profile("orin-nx")
    assert "no device profile 'orin-nx': did you mean orin-nx-" in str(caught.value)
    assert str(caught.value).endswith("? `edgesmith devices` lists them")
    with pytest.raises(DeviceProfileError, match="; `edgesmith devices` lists them"):
        profile("toaster")
    assert caught.value.exit_status == 2
    assert isinstance(caught.value.__cause__, LookupError)
