"""Device profiles by name, with the errors of this package."""

from __future__ import annotations

from edgesmith.device_profiles import DeviceProfile, load_profile
from edgesmith.sdk.errors import DeviceProfileError


def profile(name: str) -> DeviceProfile:
    """The device profile of that name, such as ``orin-nano-8gb``.

    Raises:
        DeviceProfileError: there is none; the message has the names that are close.
    """
    try:
        return load_profile(name)
    except LookupError as error:
        said = str(error.args[0])
        separator = "" if said.endswith("?") else ";"  # a question ends its sentence
        raise DeviceProfileError(f"{said}{separator} `edgesmith devices` lists them") from error
