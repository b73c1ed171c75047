"""A network that is down."""

from ssd.system.download import DownloadError


def refuse(*_: object, **__: object) -> None:
    """Stand in for a download or a request, and fail."""
    raise DownloadError("https://nowhere: connection refused")
