"""A web page that shows what a network finds in a photo or in front of a camera, served to this machine alone."""

import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
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

from ssd.evaluation.pictures import class_colour
from ssd.inference.predictor import Predictor
from ssd.system.images import ImageError, TooLarge, decode, printable

HOST = "127.0.0.1"
HTTP_PORT = 80  # which browsers leave out of an address
PAGE = Path(__file__).with_name("demo.html")
MAX_BYTES = 64 * 2**20  # of a photo's file
LEAST_SCORE = 0.05  # of what the page gets; its slider hides the rest
# The page brings all it needs, and asks nobody but this server.
POLICY = (
    "default-src 'none'; img-src blob: data:; media-src blob: mediastream:; connect-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Answer:
    """What was found in a photo, as the page gets it."""

    width: int  # pixels of the photo, upright
    height: int
    boxes: list[list[float]]  # edges x1, y1, x2, y2 in these pixels, counted from 0
    names: list[str]
    labels: list[int]
    scores: list[float]  # falling
    decoding: float  # seconds
    detection: float


class Demo:
    """The page's server, a WSGI application.

    Args:
        predictor: finds the objects; its least score should be no higher than LEAST_SCORE.
        score: where the page's slider stands at first.
        photo: that the page shows at first, if any.
        port: that it is reached at; other hosts and ports in a request's address are refused.
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
        # A page of another site can ask for any address on this machine, but not choose what it is called by.
        ends = (f":{port}", "") if port == HTTP_PORT else (f":{port}",)
        self.hosts = {f"{name}{end}" for name in (HOST, "localhost") for end in ends}
        self.turn = threading.Lock()

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
        """
        Raises:
            HTTPException: there is no such page, or no photo in what was sent; with one line that says why.
        """
        if request.environ.get("HTTP_HOST") not in self.hosts:
            raise BadRequest(f"this server is called {HOST}, and by no other name")
        pages = {"/": ("GET", self.page), "/photo": ("GET", self.first_photo), "/detect": ("POST", self.detect)}
        if request.path not in pages:
            raise NotFound(f"{request.path}: there is no such page")
        method, page = pages[request.path]
        if request.method != method:
            raise MethodNotAllowed([method], f"{request.path} takes {method}")
        return page(request)

    def page(self, request: Request) -> Response:
        settings = json.dumps(self.settings).replace("<", "\\u003c")  # no name of a class ends the script
        return Response(
            PAGE.read_text(encoding="utf-8").replace("{settings}", settings), content_type="text/html; charset=utf-8"
        )

    def first_photo(self, request: Request) -> Response:
        if self.photo is None:
            raise NotFound("the command was given no photo")
        try:
            return Response(self.photo.read_bytes(), content_type="application/octet-stream")
        except OSError as error:  # it was there when the command started
            raise NotFound(f"{printable(self.photo)}: {error.strerror}") from None

    def detect(self, request: Request) -> Response:
        """The objects in the photo that was sent: the bytes of its file, and nothing around them."""
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] not in self.hosts:
            raise BadRequest(f"{origin}: photos are taken from this server's own page")
        if not request.content_length:
            raise BadRequest("nothing was sent; expected the bytes of a photo's file")
        if request.content_length > MAX_BYTES:
            raise RequestEntityTooLarge(f"the file has more than {MAX_BYTES // 2**20} MiB")
        begin = time.perf_counter()
        pixels = uploaded_pixels(request.get_data())
        decoded = time.perf_counter()
        with self.turn:  # one photo at a time has all cores
            start = time.perf_counter()
            (found,) = self.predictor.detect([pixels])
            end = time.perf_counter()
        answer = Answer(
            pixels.shape[1], pixels.shape[0], found.boxes.astype(float).round(2).tolist(), found.names, found.labels.tolist(),
            found.scores.astype(float).round(4).tolist(), decoded - begin, end - start,
        )  # fmt: skip
        return Response(json.dumps(asdict(answer)), content_type="application/json")


def uploaded_pixels(encoded: bytes) -> np.ndarray:
    """The pixels of a photo's file, upright, `[H, W, 3]` uint8 RGB.

    Raises:
        HTTPException: it is no photo, too large, or damaged.
    """
    try:
        return decode(np.frombuffer(encoded, np.uint8), "the photo")
    except TooLarge as error:
        raise RequestEntityTooLarge(str(error)) from None
    except ImageError as error:
        raise UnsupportedMediaType(str(error)) from None
