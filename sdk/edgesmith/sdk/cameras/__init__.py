"""Where frames come from: files, folders, cameras."""

from edgesmith.sdk.cameras.base import Camera, CameraState, CameraStatus, Frame, SupervisedCamera
from edgesmith.sdk.cameras.open import open_camera
from edgesmith.sdk.cameras.pictures import PictureFolder, list_pictures, read_image

__all__ = [
    "Camera",
    "CameraState",
    "CameraStatus",
    "Frame",
    "PictureFolder",
    "SupervisedCamera",
    "list_pictures",
    "open_camera",
    "read_image",
]
