"""An int8 module behind a small HTTP server: loaded from its file, checked, and called from several threads at once.

The server is the standard library's, with a thread for each connection; a request and an answer are an array as numpy writes one (.npy).
What is served: FILE, with the known answer that stands beside it, or a network with seeded weights that the script makes first. Clients
in threads of this process ask all inputs; each answer has to have the bits of a call without threads. Requests a second are printed, and
the processor time of one, the client's part of it counted.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.debug import compute_sqnr

LARGEST = 64 << 20  # bytes of a request: what is larger is refused before it is read
NEAR = 40.0  # dB; another CPU may round a layer's result to the next step, a wrong kernel or file is far below


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 2, 1), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Conv2d(width, width, 3, 1, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)).eval()


def build(folder: Path, backend: str, width: int, size: int) -> Path:
    """What is done once, where the model is made: the file, and beside it an input with the answer to it."""
    data = [torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    small = qcompiler.quantize(network(width), data, backend=backend, progress=False)
    path = folder / "model.qc"
    qcompiler.save(small, path)
    with torch.inference_mode():
        np.savez(path.with_suffix(".check.npz"), given=data[0].numpy(), answer=small(data[0]).numpy())
    return path


def start(path: Path) -> tuple[nn.Module, Tensor]:
    """The module, after its known answer was computed again: that builds kernels, packs weights, and finds what is broken here."""
    small = qcompiler.load(path)
    with np.load(path.with_suffix(".check.npz"), allow_pickle=False) as check:
        given, answer = (torch.from_numpy(check[name]) for name in ("given", "answer"))
    with torch.inference_mode():
        made = [small(given) for _ in range(3)][-1]
    near = float(compute_sqnr(answer, made))
    if not near > NEAR:
        raise SystemExit(f"{path}: the known answer comes back at {near:.1f} dB; it is not served")
    print(f"{path.name}: the known answer comes back {'with the same bits' if torch.equal(made, answer) else f'at {near:.1f} dB'}")
    return small, given


def packed(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def unpacked(text: bytes) -> np.ndarray:
    array: np.ndarray = np.load(io.BytesIO(text), allow_pickle=False)  # data alone: a pickle in it is refused
    return array


class Server(ThreadingHTTPServer):
    """One module for all threads."""

    daemon_threads = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.module = module


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"  # a connection, and so its thread, is kept
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        said = self.headers.get("Content-Length", "")
        length = int(said) if said.isdecimal() else 0
        if not 0 < length <= LARGEST:
            self.close_connection = True
            return self.answer(413, b"too large, or nothing")
        try:
            given = torch.from_numpy(unpacked(self.rfile.read(length)))
            with torch.inference_mode():
                made = self.server.module(given)
        except (ValueError, TypeError, EOFError, qcompiler.QCompilerError) as error:  # what the caller sent: named in the answer
            return self.answer(400, str(error).encode())
        except Exception as error:  # a server goes on
            self.log_error("%r", error)
            return self.answer(500, b"failed")
        self.answer(200, packed(made.numpy()))

    def answer(self, code: int, text: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Not one line for each request here."""


def ask(port: int, requests: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """One client: all requests, one after the other, over one connection."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    answers = []
    for request in requests:
        connection.request("POST", "/", request)
        answer = connection.getresponse()
        answers.append((answer.status, answer.read()))
    connection.close()
    return answers


def measure(port: int, requests: Sequence[bytes], expected: Sequence[bytes], clients: int, rounds: int) -> str:
    """Requests a second of so many clients at once, each of which asks all of them; every answer is compared."""
    begin, used = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(clients) as pool:
        for answers in pool.map(lambda _: ask(port, list(requests) * rounds), range(clients)):
            assert answers == [(200, text) for text in expected] * rounds
    count = clients * rounds * len(requests)
    passed, used = time.perf_counter() - begin, time.process_time() - used
    return f"{clients} at once: {count / passed:.0f} requests a second, {used / count * 1e3:.2f} ms of processor time each"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, help="a file of qcompiler.save, with NAME.check.npz beside it")
    parser.add_argument("--backend", default="torch", choices=("torch", "native"), help="of the network that is made without a file")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 2], help="how many ask at once")
    parser.add_argument("--quick", action="store_true", help="a small network and few requests; the figures are then rough")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the server's threads are the parallel ones; those that start from here on have this number
    folder = Path(tempfile.mkdtemp())
    path = options.file or build(folder, options.backend, *((16, 32) if options.quick else (64, 112)))
    module, given = start(path)

    samples = [given[:1] + 0.01 * number for number in range(4 if options.quick else 16)]
    with torch.inference_mode():
        requests, expected = [packed(x.numpy()) for x in samples], [packed(module(x).numpy()) for x in samples]
    with Server(module) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        for clients in options.clients:
            print(measure(port, requests, expected, clients, rounds=2 if options.quick else 20))
        print("all answers have the bits of a call without threads")
        (status, said), *_ = ask(port, [packed(np.zeros((1, 3), np.float32))])
        print(f"a request of another shape: {status}, {said.decode().splitlines()[0]}")
        server.shutdown()


if __name__ == "__main__":
    main()
