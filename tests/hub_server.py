"""A server on 127.0.0.1 that answers as the Hugging Face hub and DeepMind's storage do."""

from __future__ import annotations

import hashlib
import io
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

COMMIT = '1' * 40


class HubServer:
    """Files by path, and how each is answered.

    Attributes:
        files: Path of a URL -> content.
        faults: Path -> 'slow', 'cut', 'closed', 'redirected', 'wrong', or a status.
        asked: Methods and paths of the requests.
        url: Where the server is.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, str | int] = {}
        self.asked: list[tuple[str, str]] = []
        self.stop = threading.Event()
        self.url = ''

    def put_timm(self, name: str, content: bytes, file: str = 'model.safetensors') -> str:
        path = f'/timm/{name}/resolve/main/{file}'
        self.files[path] = content
        return path

    def put_deepmind(self, name: str, content: bytes) -> str:
        path = f'/dm-nfnets/{name}_haiku.npz'
        self.files[path] = content
        return path

    def downloads(self) -> list[str]:
        """The files that were asked for; huggingface_hub asks for other things, too."""
        files = (*self.files, *(f'/elsewhere{path}' for path in self.files))
        return [path for method, path in self.asked if method == 'GET' and path in files]


class _Handler(BaseHTTPRequestHandler):
    server: ThreadingHTTPServer
    protocol_version = 'HTTP/1.1'

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, *args: object) -> None:
        pass

    def answer(self) -> None:
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        path = urlsplit(self.path).path
        hub.asked.append((self.command, path))
        fault = hub.faults.get(path)
        whole = hub.files.get(path.removeprefix('/elsewhere'))
        if whole is None or isinstance(fault, int):
            self.refuse(fault if isinstance(fault, int) else 404)
        elif fault == 'redirected':
            # As the hub does: the answer has the file's name and size, its content is elsewhere.
            self.send_response(302)
            self.send_header('Location', f'{hub.url}/elsewhere{path}')
            self.describe(whole, whole)
            self.send_header('Content-Length', '0')
            self.end_headers()
        else:
            self.send(whole, fault)

    def refuse(self, status: int) -> None:
        self.send_response(status)
        code = {401: 'RepoNotFound', 404: 'EntryNotFound'}.get(status)
        if code:
            self.send_header('X-Error-Code', code)
        self.send_header('Content-Length', '0')
        self.end_headers()

    def describe(self, told: bytes, sent: bytes) -> None:
        self.send_header('X-Repo-Commit', COMMIT)
        self.send_header('X-Linked-Etag', f'"{hashlib.sha256(told).hexdigest()}"')
        self.send_header('X-Linked-Size', str(len(sent)))

    def send(self, whole: bytes, fault: str | int | None) -> None:
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        self.send_response(200)
        self.describe(whole + b'!' if fault == 'wrong' else whole, whole)
        self.send_header('Content-Length', str(len(whole)))
        self.end_headers()
        if self.command == 'HEAD':
            return
        if fault == 'slow':
            self.wfile.write(whole[:10])
            self.wfile.flush()
            hub.stop.wait(20)
        if fault in ('slow', 'closed', 'cut'):
            self.wfile.write(whole[: len(whole) // 2] if fault == 'cut' else b'')
            self.close_connection = True
            return
        self.wfile.write(whole)


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Run the server."""
    hub = HubServer()
    http = ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
    http.hub = hub  # type: ignore[attr-defined]
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    hub.url = f'http://127.0.0.1:{http.server_port}'
    try:
        yield hub
    finally:
        hub.stop.set()
        http.shutdown()
        http.server_close()


def timm_file(model: nn.Module, folder: Path) -> bytes:
    """The file of a network of timm, as on the hub."""
    save_file(model.state_dict(), folder / 'model.safetensors')
    return (folder / 'model.safetensors').read_bytes()


def timm_pickle(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getvalue()


def randomize(model: nn.Module) -> nn.Module:
    """Random weights in which every gain counts."""
    with torch.no_grad():
        for key, p in model.named_parameters():
            if 'gain' in key:
                p.uniform_(0.5, 1.5)
            elif key.endswith('bias') or key == 'head.fc.weight':
                p.normal_(std=0.1)
    return model


_BLOCK = {'conv1': 'conv0', 'conv2': 'conv1', 'conv2b': 'conv1b', 'conv3': 'conv2'} | {
    'downsample.conv': 'conv_shortcut',
    'attention.fc0': 'squeeze_excite/linear',
    'attention.fc1': 'squeeze_excite/linear_1',
}
_OUTSIDE = {'backbone.final_conv': 'final_conv', 'head.fc': 'linear'}


def haiku_tree(model: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of an NFNet here as haiku has them.

    The names and layouts are written out once more: haiku counts blocks through all stages, and
    has HWIO and IO.
    """
    tree: dict[str, dict[str, torch.Tensor]] = {}
    numbers: dict[str, int] = {}
    for name, value in model.state_dict().items():
        start, _, leaf = name.rpartition('.')
        if name.startswith('backbone.layer'):
            stage, index, *inner = name.split('.')[1:-1]
            number = numbers.setdefault(f'{stage}.{index}', len(numbers))
            module = 'nf_block' + f'_{number}' * bool(number)
            module += f'/~/{_BLOCK[".".join(inner)]}' if inner else ''
        else:
            module = _OUTSIDE.get(start) or f'stem_conv{int(start[-1]) - 1}'
        if leaf == 'weight':
            leaf, value = 'w', value.permute(2, 3, 1, 0) if value.dim() == 4 else value.T
        elif leaf == 'bias' and 'linear' in module:
            leaf = 'b'
        tree.setdefault(f'NFNet/~/{module}', {})[leaf] = value
    return tree


def haiku_file(model: nn.Module) -> bytes:
    """A file as DeepMind's: a pickle of nested dicts of arrays."""
    return pickle.dumps(
        {
            module: {leaf: np.ascontiguousarray(value.numpy()) for leaf, value in leaves.items()}
            for module, leaves in haiku_tree(model).items()
        }
    )
