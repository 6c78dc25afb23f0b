"""An answer in place of a result: an HTTP status with one clear line."""

from __future__ import annotations

from edgesmith.sdk.errors import BackendError, BindingError, CameraError, ConfigError, EdgesmithError


class Refusal(Exception):
    """A request is not served. It ends as ``{"error": TEXT}`` with ``status``, and never leaves the service.

    Args:
        status: 4xx where the client has to change something, 503 and 504 where it may come again.
        text: what is wrong, and what would be right.
        retry_after_s: seconds after which another try makes sense, told as ``Retry-After``.
        close: end the connection, since what else the client sends is not going to be read.
    """

    def __init__(
        self, status: int, text: str, *, retry_after_s: int | None = None, close: bool = False
    ) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers: dict[str, str] = {}
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(retry_after_s)
        if close:
            self.headers["Connection"] = "close"


def refusal_of(error: EdgesmithError) -> Refusal:
    """What an error of the SDK is to the client: its own fault (400), or the service's (500)."""
    theirs = isinstance(error, ConfigError | CameraError | BindingError)
    if theirs and not (isinstance(error, BackendError) and not isinstance(error, BindingError)):
        return Refusal(400, str(error))
    return Refusal(500, f"the model could not be run: {error}")
