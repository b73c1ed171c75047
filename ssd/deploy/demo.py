"""The server of a web page that shows detections in photos and camera frames, for this machine only."""

import json
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    MethodNotAllowed,
    NotFound,
    RequestEntityTooLarge,
    UnsupportedMediaType,
)
from werkzeug.wrappers import Request, Response

from ssd.inference.pictures import class_colour
from ssd.inference.predictor import Predictor
from ssd.system.images import DecodedPhoto, ImageError, Reduction, TooLarge, decode, printable

HOST = "127.0.0.1"
HTTP_PORT = 80  # browsers omit it from addresses
PAGE = Path(__file__).with_name("demo.html")
MAX_BYTES = 64 * 2**20  # of a photo's file
LEAST_SCORE = 0.05  # of the detections sent to the page; its slider hides more
# The page is self-contained and may contact only this server.
POLICY = (
    "default-src 'none'; img-src blob: data:; media-src blob: mediastream:; connect-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Demo:
    """The server, a WSGI application.

    Args:
        predictor: with a score threshold of at most LEAST_SCORE.
        score: initial position of the page's slider.
        photo: initial photo, if any.
        port: of the server; requests to other hosts or ports are refused.
    """

    def __init__(self, predictor: Predictor, score: float, photo: Path | None, port: int) -> None:
        self.predictor = predictor
        self.settings = {
            "classes": list(predictor.classes),
            "colours": [class_colour(label) for label in range(len(predictor.classes))],
            "score": score,
            "least": LEAST_SCORE,
            "max_bytes": MAX_BYTES,
            "photo": photo.name if photo else None,
        }
        self.photo = photo
        # A page of another site can request any address on this machine, but cannot choose the host name in the request.
        ends = (f":{port}", "") if port == HTTP_PORT else (f":{port}",)
        self.hosts = {f"{name}{end}" for name in (HOST, "localhost") for end in ends}
        self.lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = Request(environ)
        request.max_content_length = MAX_BYTES
        try:
            response = self.respond(request)
        except HTTPException as error:
            response = Response(f"{error.description}\n", status=error.code, content_type="text/plain; charset=utf-8")
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        return response(environ, start_response)

    def respond(self, request: Request) -> Response:
        """Answer a request.

        Raises:
            HTTPException: the page does not exist, or the upload is not a photo; the description is one line.
        """
        if request.environ.get("HTTP_HOST") not in self.hosts:
            raise BadRequest(f"this server answers only to {HOST}")
        pages = {"/": ("GET", self.page), "/photo": ("GET", self.first_photo), "/detect": ("POST", self.detect)}
        if request.path not in pages:
            raise NotFound(f"{request.path}: no such page")
        method, page = pages[request.path]
        if request.method != method:
            raise MethodNotAllowed([method], f"{request.path} takes {method}")
        return page(request)

    def page(self, request: Request) -> Response:
        settings = json.dumps(self.settings).replace("<", "\\u003c")  # a class name cannot end the script
        return Response(
            PAGE.read_text(encoding="utf-8").replace("{settings}", settings), content_type="text/html; charset=utf-8"
        )

    def first_photo(self, request: Request) -> Response:
        if self.photo is None:
            raise NotFound("no photo was given")
        try:
            return Response(self.photo.read_bytes(), content_type="application/octet-stream")
        except OSError as error:  # it existed when the command started
            raise NotFound(f"{printable(self.photo)}: {error.strerror}") from None

    def detect(self, request: Request) -> Response:
        """Return the detections in an uploaded photo; the request's body is the file."""
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] not in self.hosts:
            raise BadRequest(f"{origin}: only this server's own page may send photos")
        if not request.content_length:
            raise BadRequest("empty request; expected a photo's file")
        if request.content_length > MAX_BYTES:
            raise RequestEntityTooLarge(f"the file is larger than {MAX_BYTES // 2**20} MiB")
        begin = time.perf_counter()
        photo = uploaded_photo(request.get_data(), self.predictor.reduction)
        decoded = time.perf_counter()
        with self.lock:  # each photo uses all cores
            start = time.perf_counter()
            (found,) = self.predictor.detect([photo])
            end = time.perf_counter()
        answer = {
            "width": photo.width,  # of the upright photo
            "height": photo.height,
            "boxes": found.boxes.astype(float).round(2).tolist(),
            "names": found.names,
            "labels": found.labels.tolist(),
            "scores": found.scores.astype(float).round(4).tolist(),
            "decoding": decoded - begin,  # seconds
            "detection": end - start,
        }
        return Response(json.dumps(answer), content_type="application/json")


def uploaded_photo(encoded: bytes, reduction: Reduction) -> DecodedPhoto:
    """Decode a photo's file, rotated upright; `reduction` says by how much it may be reduced.

    Raises:
        HTTPException: it is not a photo, too large, or damaged.
    """
    try:
        return decode(np.frombuffer(encoded, np.uint8), "the photo", reduction)
    except TooLarge as error:
        raise RequestEntityTooLarge(str(error)) from None
    except ImageError as error:
        raise UnsupportedMediaType(str(error)) from None
