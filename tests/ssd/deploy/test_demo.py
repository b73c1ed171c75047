import io
import json
import shutil
import socket
import subprocess
import threading

import numpy as np
import pytest
from PIL import Image
from werkzeug.serving import make_server
from werkzeug.test import Client, EnvironBuilder, run_wsgi_app

from scripts import demo as script
from ssd.deploy import demo
from ssd.inference.predictor import Predictor
from tests.helpers.photos import DAMAGED

ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return Predictor.from_checkpoint(checkpoint, "cpu", "float32", score_thresh=0.3)


@pytest.fixture(scope="module")
def photo(shapes_root):
    return min((shapes_root / "shapes/JPEGImages").iterdir())


@pytest.fixture
def client(predictor):
    return Client(demo.Demo(predictor, 0.5, None, 8000))


def post(client, data, **options):
    return client.post("/detect", base_url=ADDRESS, data=data, **options)


def test_demo_and_predictor_agree(client, predictor, photo):
    response = post(client, photo.read_bytes())
    assert response.status_code == 200
    (expected,) = predictor(photo)
    assert len(expected.labels) > 3
    answer = response.json
    np.testing.assert_allclose(answer["boxes"], expected.boxes, atol=0.006)
    np.testing.assert_allclose(answer["scores"], expected.scores, atol=6e-5)
    assert answer["labels"] == expected.labels.tolist()
    assert answer["names"] == expected.names
    with Image.open(photo) as image:
        assert (answer["width"], answer["height"]) == image.size


def test_photos_are_rotated_upright(client, photo):
    sideways = io.BytesIO()
    with Image.open(photo) as image:
        width, height = image.size
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(sideways, "JPEG", exif=exif)
    answer = post(client, sideways.getvalue()).json
    assert (answer["width"], answer["height"]) == (height, width) != (width, height)


def encoded(width, height):
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (b"", 400, "empty request; expected a photo's file"),
        (b"hello", 415, "the photo: is not a supported image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "the photo: is not a supported image"),
        (encoded(40_000, 4_000), 413, "the photo: has 40000 × 4000 pixels, more than 134,217,728; scale it down"),
        (encoded(300, 300)[:45], 415, "the photo: is damaged or truncated"),
        (DAMAGED, 415, "the photo: is damaged or truncated"),
    ],
    ids=["nothing", "text", "svg", "bomb", "cut off", "damaged"],
)
def test_an_invalid_photo_is_answered_in_one_line(client, data, status, said):
    response = post(client, data)
    assert (response.status_code, response.text.partition(" (")[0].rstrip()) == (status, said)
    assert response.text.count("\n") == 1


def test_a_large_upload_is_refused_unread(client, monkeypatch):
    monkeypatch.setattr(demo, "MAX_BYTES", 1000)
    response = post(client, b"x" * 1001)
    assert response.status_code == 413


def test_other_sites_are_refused(client, photo):
    data = photo.read_bytes()
    assert client.get("/", base_url="http://elsewhere.example:8000").status_code == 400
    assert client.get("/", base_url="http://127.0.0.1:8001").status_code == 400
    assert post(client, data, headers={"Origin": "http://elsewhere.example"}).status_code == 400
    assert post(client, data, headers={"Origin": "null"}).status_code == 400
    assert post(client, data, headers={"Origin": ADDRESS}).status_code == 200
    response = client.get("/", base_url=ADDRESS)
    assert response.status_code == 200
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert "connect-src 'self'" in response.headers["Content-Security-Policy"]
    assert client.get("/detect", base_url=ADDRESS).status_code == 405
    assert client.get("/../train.py", base_url=ADDRESS).status_code == 404
    assert client.get("/photo", base_url=ADDRESS).status_code == 404


def test_browsers_omit_port_80(predictor, photo):
    application = demo.Demo(predictor, 0.5, None, 80)
    for address in ("http://127.0.0.1", "http://localhost", "http://127.0.0.1:80"):
        environ = EnvironBuilder("/detect", data=photo.read_bytes(), method="POST", headers={"Origin": address}).get_environ()
        environ["HTTP_HOST"] = address.partition("://")[2]
        assert run_wsgi_app(application, environ)[1] == "200 OK"
    assert Client(application).get("/", base_url="http://elsewhere.example").status_code == 400


def test_a_deleted_photo_is_answered_in_one_line(predictor, tmp_path):
    response = Client(demo.Demo(predictor, 0.5, tmp_path / "a.jpg", 8000)).get("/photo", base_url=ADDRESS)
    assert (response.status_code, response.text) == (404, f"{tmp_path / 'a.jpg'}: No such file or directory\n")


def test_class_names_cannot_end_the_script(predictor):
    names = ["</script><b>", *predictor.classes[1:]]
    odd = Predictor(predictor.model, names, predictor.preprocessing, predictor.device, predictor.dtype, predictor.options)
    text = Client(demo.Demo(odd, 0.5, None, 8000)).get("/", base_url=ADDRESS).text
    assert text.count("</script>") == 1
    settings = text.partition("const settings = ")[2].partition(";\n")[0]
    assert json.loads(settings)["classes"][0] == "</script><b>"


def test_a_browser_shows_detections(predictor, photo, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    with socket.create_server((demo.HOST, 0)) as listening:
        port = listening.getsockname()[1]
        application = demo.Demo(predictor, 0.35, photo, port)
        server = make_server(demo.HOST, port, application, threaded=True, fd=listening.fileno())
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000"]
        try:
            words += ["--dump-dom", f"http://{demo.HOST}:{port}/"]
            done = subprocess.run([browser, *words], capture_output=True, text=True, timeout=120)
        finally:
            server.shutdown()
            thread.join()
    (expected,) = predictor(photo)
    count = (expected.scores.astype(float).round(4) >= 0.35).sum()
    assert 1 < count < len(expected.scores)
    assert f"{count} objects with scores from 0.35" in done.stdout
    with Image.open(photo) as image:
        assert f"{image.width} × {image.height} pixels" in done.stdout


def test_a_port_in_use_is_answered_in_one_line(checkpoint, capsys):
    with socket.create_server((demo.HOST, 0)) as taken:
        port = taken.getsockname()[1]
        assert script.main([str(checkpoint), "--port", str(port), "--device", "cpu"]) == 2
    assert capsys.readouterr().err.startswith(f"error: --port {port}: cannot be used (")
    assert script.main([str(checkpoint), "nowhere.jpg"]) == 2
    assert "nowhere.jpg: no such file" in capsys.readouterr().err
    assert script.main([str(checkpoint), str(checkpoint.parent)]) == 2
    assert f"{checkpoint.parent}: is not a file; name a photo" in capsys.readouterr().err
