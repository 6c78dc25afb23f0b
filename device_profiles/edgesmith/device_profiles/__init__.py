"""Device profiles: what is known of each board, one TOML file a module, and its reader."""

from edgesmith.device_profiles.profile import (
    DeviceProfile,
    Figure,
    PowerMode,
    Software,
    Stated,
    list_profiles,
    load_profile,
)

__all__ = [
    "DeviceProfile",
    "Figure",
    "PowerMode",
    "Software",
    "Stated",
    "list_profiles",
    "load_profile",
]
