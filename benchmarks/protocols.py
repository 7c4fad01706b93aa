"""Time of a request in the shapes of other servers, against POST /predict with the same images.

    .venv/bin/python -m benchmarks.protocols [--front-ends N]

One client on one connection sends the same test images in every shape, in turns, to the shipped
image bundle under a budget so small that all leave at exit 0: what is left besides the network is
what the shapes differ in. Figures are ratios of lower quartiles over the rounds, to the raw image
of POST /predict for one image, and to its list for 64. JSON on the last line.
"""

import base64
import http.client
import json
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

from benchmarks.harness import (
    IMAGE_BUNDLE,
    image_files,
    image_preprocessor,
    lower_quartiles,
    make_parser,
    print_figures,
    print_report,
    serving,
)

BUDGET_MS = 0.001
BATCH, ROUNDS, SMOKE_ROUNDS = 64, 400, 3
MODEL = IMAGE_BUNDLE.name
V1, V2 = f"/v1/models/{MODEL}:predict", f"/v2/models/{MODEL}/infer"


class Shape(NamedTuple):
    """One way of sending images."""

    path: str
    body: bytes
    headers: dict[str, str]


def main() -> None:
    """Measure, and print ratios."""
    parser = make_parser(__doc__)
    parser.add_argument("--front-ends", default="1", help="0: in one process")
    args = parser.parse_args()
    rounds = SMOKE_ROUNDS if args.smoke else ROUNDS
    options = ["--bundle", str(IMAGE_BUNDLE), "--budget-ms", str(BUDGET_MS)]
    with serving(*options, "--front-ends", args.front_ends) as server:
        address = urlsplit(server.url).netloc
        ratios = {
            "one image": measure(address, shapes_of(1), rounds),
            f"{BATCH} images": measure(address, shapes_of(BATCH), max(rounds // 8, 1)),
        }
    print_figures(ratios)
    print_report(ratios, smoke=args.smoke)


def shapes_of(count: int) -> dict[str, Shape]:
    """The shapes of so many images; the first one is the reference."""
    files = image_files(count)
    texts = [base64.b64encode(file).decode() for file in files]
    preprocess = image_preprocessor()
    pixels = np.stack([preprocess.decode(file) for file in files])
    elements = b"".join([len(file).to_bytes(4, "little") + file for file in files])
    shapes = {
        "POST /predict, list in base64": as_json("/predict", {"images": texts}),
        "KServe v1": as_json(V1, {"instances": texts}),
        "Hugging Face": as_json("/predict", {"inputs": texts}),
        "vLLM": as_json("/classify", {"input": texts}),
        "v2, FP32": as_tensor("FP32", (count, 3, *pixels.shape[1:3]), planes_of(pixels)),
        "v2, UINT8": as_tensor("UINT8", pixels.shape, pixels.tobytes()),
        "v2, BYTES": as_tensor("BYTES", (count,), elements),
    }
    if count > 1:
        return shapes
    raw = Shape("/predict", files[0], {"Content-Type": "image/jpeg"})
    return {"POST /predict, raw image": raw, **shapes}


def planes_of(pixels: np.ndarray) -> bytes:
    """Pixels (N, H, W, 3) as the bytes of normalised planes."""
    return image_preprocessor().normalise(pixels).tobytes()


def as_json(path: str, content: object) -> Shape:
    """A body of JSON."""
    return Shape(path, json.dumps(content).encode(), {"Content-Type": "application/json"})


def as_tensor(datatype: str, shape: tuple[int, ...], data: bytes) -> Shape:
    """A binary tensor, answered in binary."""
    head = {
        "parameters": {"binary_data_output": True},
        "inputs": [
            {
                "name": "image",
                "shape": shape,
                "datatype": datatype,
                "parameters": {"binary_data_size": len(data)},
            }
        ],
    }
    content = json.dumps(head).encode()
    return Shape(V2, content + data, {"Inference-Header-Content-Length": str(len(content))})


def measure(address: str, shapes: dict[str, Shape], rounds: int) -> dict[str, float]:
    """Return the time of each shape as a multiple of the first one's."""
    connection = http.client.HTTPConnection(address)
    ways: list[Callable[[], None]] = [sender(connection, shape) for shape in shapes.values()]
    seconds = lower_quartiles(ways, rounds)
    connection.close()
    ratios = (seconds / seconds[0]).round(3).tolist()
    return dict(zip(shapes, ratios, strict=True))


def sender(connection: http.client.HTTPConnection, shape: Shape) -> Callable[[], None]:
    """Return a function that sends a request and reads its answer."""

    def send() -> None:
        connection.request("POST", shape.path, shape.body, shape.headers)
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(f"{shape.path} answered {response.status}: {content[:200]!r}")

    return send


if __name__ == "__main__":
    main()
