"""Show detections in a browser: python scripts/demo.py [CHECKPOINT] [PHOTO]

    python scripts/demo.py
    python scripts/demo.py runs/mine/checkpoints/best.pt

Without a CHECKPOINT, the shipped network `half` finds the 20 classes of PASCAL VOC: people, animals, vehicles, furniture.
Open the printed address, and drop, paste or choose a photo, or start the camera. The page draws the boxes; its slider sets the
minimum score. The server accepts connections from this machine only, and no photo leaves it. Ctrl-C stops the server.
"""

import argparse
import socket
import sys
from pathlib import Path

from ssd.system.arguments import Parser, fraction, whole_number
from ssd.system.command import command
from ssd.system.errors import UsageError


@command()
def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    from werkzeug.serving import WSGIRequestHandler, make_server

    from ssd.deploy.demo import HOST, LEAST_SCORE, Demo
    from ssd.deploy.inputs import split_checkpoint
    from ssd.inference.predictor import Predictor
    from ssd.system.device import keep_freed_memory
    from ssd.weights.checkpoint import load_checkpoint
    from ssd.weights.sources import SHIPPED, SHIPPED_SCORE, checkpoint_file

    checkpoint, words = split_checkpoint([word for word in (options.checkpoint, options.photo) if word is not None])
    photo = Path(words[0]) if words else None
    if photo and not photo.is_file():
        raise UsageError(f"{photo}: {'is not a file; name a photo' if photo.exists() else 'no such file'}")
    if len(words) > 1:
        raise UsageError(f"{words[1]}: the page starts with one photo; drop others onto it")

    class Quiet(WSGIRequestHandler):
        """Log no requests."""

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

    keep_freed_memory()
    state = load_checkpoint(checkpoint_file(checkpoint))
    predictor = Predictor.from_checkpoint(state, options.device, score_thresh=LEAST_SCORE)
    is_shipped = checkpoint_file(checkpoint) in SHIPPED.values()
    scores = sorted(state.class_scores.values()) if is_shipped else [0.5]
    usual = scores[len(scores) // 2] if scores else SHIPPED_SCORE
    try:
        listening = socket.create_server((HOST, options.port))
    except OSError as error:
        raise UsageError(f"--port {options.port}: cannot be used ({error.strerror}); choose another port") from None
    with listening:
        port = listening.getsockname()[1]
        demo = Demo(predictor, usual if options.score is None else options.score, photo, port)
        server = make_server(HOST, port, demo, threaded=True, request_handler=Quiet, fd=listening.fileno())
        print(f"open http://{HOST}:{port} in a browser; Ctrl-C stops the server", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "checkpoint", nargs="?", metavar="CHECKPOINT", help="checkpoints/best.pt of a run, or converted weights (half)"
    )
    parser.add_argument("photo", nargs="?", metavar="PHOTO", help="photo to show first")
    parser.add_argument("--port", type=whole_number(0, 65535), default=8000, metavar="N", help="server port; 0: any (8000)")
    parser.add_argument("--score", type=fraction, metavar="S", help="initial position of the slider (0.5)")
    parser.add_argument("--device", default="auto", help="auto | cpu | mps | cuda | cuda:N")
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
