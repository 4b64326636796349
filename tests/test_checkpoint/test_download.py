"""Downloads from a server that answers slowly, in part, elsewhere or not at all."""

import hashlib
import io
import threading
import time
import types
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from mmengine.runner import CheckpointLoader

from nf_plugins.checkpoint import download
from nf_plugins.errors import CheckpointError, CheckpointNotFoundError

from ..tools import Apart


def content(value):
    buffer = io.BytesIO()
    torch.save(dict(state_dict={'a': torch.full((1000,), float(value))}), buffer)
    return buffer.getvalue()


def sha8(data):
    return hashlib.sha256(data).hexdigest()[:8]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server whose answer to each path the test decides: a function of the request."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    state = types.SimpleNamespace(answers={}, asked=[], stop=threading.Event())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state.asked.append(self.path)
            state.answers[self.path](self)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    state.url = f'http://127.0.0.1:{http.server_port}'
    state.cache = tmp_path / 'torch/hub/checkpoints'
    yield state
    state.stop.set()
    http.shutdown()
    http.server_close()


def send(data, length=None, status=200, **headers):
    def answer(request):
        request.send_response(status)
        if length != 'none':
            request.send_header('Content-Length', str(len(data) if length is None else length))
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(data)

    return answer


def load(url):
    return CheckpointLoader.load_checkpoint(url, 'cpu')['state_dict']['a'][0].item()


def kept(server):
    return sorted(path.name for path in server.cache.glob('*'))


def test_one_name_in_two_places(server):
    for number, path in enumerate(('/a/m.pth', '/b/m.pth', '/m.pth?v=1', '/m.pth?v=2')):
        server.answers[path] = send(content(number))
    for _ in range(2):
        loaded = [load(server.url + path) for path in server.answers]
        assert loaded == [0.0, 1.0, 2.0, 3.0]
    assert server.asked == list(server.answers)  # each once
    assert len(kept(server)) == 4
    assert all(name.startswith('m.') and name.endswith('.pth') for name in kept(server))


BAD = {
    'cut': (send(content(1)[:-700], len(content(1))), r'cut off after \d+ of \d+ bytes'),
    'cut without a length': (send(content(1)[:-700], 'none'), 'not a readable checkpoint'),
    'empty': (send(b''), 'not a readable checkpoint'),
    'a page': (send(b'<html>Log in</html>'), 'not a readable checkpoint'),
    'none': (send(b'', status=404), '404 Not Found'),
    'forbidden': (send(b'no', status=403), '403 Forbidden'),
    'broken': (send(b'', status=500), '500'),
    'in circles': (send(b'', status=302, Location='/x.pth'), 'redirect'),
    'to a file': (send(b'', status=302, Location='file:///etc/hostname'), 'is not allowed'),
    'to ftp': (send(b'', status=302, Location='ftp://127.0.0.1/x.pth'), 'redirected to ftp:'),
    'no http': (lambda request: request.wfile.write(b'hello\r\n\r\n'), 'cannot download'),
    'hung up': (lambda request: None, 'cannot download'),
}


@pytest.mark.parametrize('kind', BAD)
def test_what_fails_leaves_nothing_and_may_work_later(kind, server):
    server.answers['/x.pth'], message = BAD[kind]
    with pytest.raises(CheckpointError, match=message) as error:
        load(f'{server.url}/x.pth')
    assert '\n' not in str(error.value)
    assert f'{server.url}/x.pth' in str(error.value)
    assert kept(server) == []
    server.answers['/x.pth'] = send(content(5))
    assert load(f'{server.url}/x.pth') == 5.0


def silent(server, *parts, pause=None):
    def answer(request):
        for part in parts:
            request.wfile.write(part)
            request.wfile.flush()
            server.stop.wait(pause)

    return answer


HEAD = b'HTTP/1.0 200 OK\r\nContent-Length: 100000\r\n\r\n'


@pytest.mark.parametrize(
    ('parts', 'pause'),
    [([b''], None), ([HEAD], None), ([HEAD, b'abc'], 0.1), ([HEAD] + [b'a'] * 600, 0.05)],
    ids=['silent', 'silent after the headers', 'silent in the middle', 'a byte now and then'],
)
def test_a_silent_server_is_not_waited_for(parts, pause, server, monkeypatch):
    monkeypatch.setattr(download, 'TIMEOUT', 0.5)
    if parts == [HEAD, b'abc']:
        parts, pause = [HEAD + b'abc'], None
    server.answers['/x.pth'] = silent(server, *parts, pause=pause)
    began = time.monotonic()
    with pytest.raises(CheckpointNotFoundError, match='timed out|the server sent'):
        load(f'{server.url}/x.pth')
    assert time.monotonic() - began < 20
    assert kept(server) == []


CHUNKED = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n'
DRIPS = {
    'status': (b'HTTP/1.1 2', b'x'),
    'name of a header': (b'HTTP/1.1 200 OK\r\n', b'X'),
    'headers': (b'HTTP/1.1 200 OK\r\n', b'X: y\r\n'),
    'length of a chunk': (CHUNKED, b'0'),
    'what follows the chunks': (CHUNKED + b'1\r\nx\r\n0\r\n', b'X: y\r\n'),
    'answers that promise one': (b'', b'HTTP/1.1 100 Continue\r\n\r\n'),
}


@pytest.mark.parametrize('kind', DRIPS)
def test_a_server_that_sends_single_bytes_is_not_waited_for(kind, server, monkeypatch):
    """Each byte ended the wait for the next: 65,536 bytes of a line took days."""
    monkeypatch.setattr(download, 'TIMEOUT', 0.5)
    monkeypatch.setattr(download, 'SLOWEST', 5000)
    head, piece = DRIPS[kind]

    def drip(request):
        request.wfile.write(head)
        for _ in range(100):
            try:
                request.wfile.write(piece)
            except OSError:  # nobody waits any more
                return
            server.stop.wait(0.1)

    server.answers['/x.pth'] = drip
    began = time.monotonic()
    with pytest.raises(CheckpointNotFoundError, match='the server sent'):
        load(f'{server.url}/x.pth')
    assert time.monotonic() - began < 5
    assert kept(server) == []


@pytest.mark.slow
def test_a_slow_server_is(server, monkeypatch):
    monkeypatch.setattr(download, 'TIMEOUT', 1.0)  # less than the whole takes
    data = content(3)

    def slowly(request):
        request.wfile.write(f'HTTP/1.0 200 OK\r\nContent-Length: {len(data)}\r\n\r\n'.encode())
        for start in range(0, len(data), 500):
            request.wfile.write(data[start : start + 500])
            request.wfile.flush()
            time.sleep(0.1)

    server.answers['/x.pth'] = slowly
    assert load(f'{server.url}/x.pth') == 3.0


def test_a_server_that_is_not_there(server):
    with pytest.raises(CheckpointNotFoundError, match=r'cannot download http://127.0.0.1:9/x\.pth'):
        load('http://127.0.0.1:9/x.pth')
    for url in ('http://[bad/x.pth', 'http://127.0.0.1:port/x.pth', 'http:///x.pth', 'http://a b/'):
        with pytest.raises(CheckpointNotFoundError, match='cannot download'):
            load(url)


@pytest.mark.parametrize('status', [301, 302, 303, 307, 308])
def test_redirects_are_followed(status, server):
    server.answers['/x.pth'] = send(b'', status=status, Location='/elsewhere/y.pth')
    server.answers['/elsewhere/y.pth'] = send(content(4))
    assert load(f'{server.url}/x.pth') == 4.0
    assert [name.split('.')[0] for name in kept(server)] == ['x']


@pytest.mark.parametrize(
    ('start', 'to', 'followed'),
    [
        ('https', 'http://example.org/x.pth', False),
        ('https', 'https://example.org/x.pth', True),
        ('http', 'http://example.org/x.pth', True),
        ('http', 'https://example.org/x.pth', True),
        ('http', 'ftp://example.org/x.pth', False),
        ('https', 'ftp://example.org/x.pth', False),
        ('http', 'file:///etc/passwd', False),
        ('https', 'data:,x', False),
    ],
)
def test_redirects_never_leave_the_web_nor_https(start, to, followed):
    request = urllib.request.Request(f'{start}://127.0.0.1/x.pth')
    handler = next(h for h in download._OPENER.handlers if isinstance(h, download._Redirects))
    redirect = (request, io.BytesIO(), 302, 'Found', {}, to)
    if followed:
        assert handler.redirect_request(*redirect).full_url == to
    else:
        with pytest.raises(urllib.error.HTTPError, match='redirected to'):
            handler.redirect_request(*redirect)


def test_the_hash_in_a_name(server):
    right, wrong = content(1), content(2)
    url = f'{server.url}/nf_20260101-{sha8(right)}.pth'
    path = url.removeprefix(server.url)
    server.answers[path] = send(wrong)
    with pytest.raises(CheckpointError, match=f'SHA-256 is not {sha8(right)}'):
        load(url)
    assert kept(server) == []
    server.answers[path] = send(right)
    assert load(url) == 1.0


def test_what_torch_has_downloaded_is_used_if_the_hash_fits(server):
    right = content(1)
    name = f'nf-{sha8(right)}.pth'
    server.cache.mkdir(parents=True)
    (server.cache / name).write_bytes(right)
    server.answers[f'/{name}'] = send(right)
    assert load(f'{server.url}/{name}') == 1.0
    assert server.asked == []
    (server.cache / name).write_bytes(content(2))
    assert load(f'{server.url}/{name}') == 1.0
    assert server.asked == [f'/{name}']


def test_names_without_a_hash():
    for name in ('a-20260101.pth', 'a-00012345.pth', 'a.pth', 'a-1a2b3c4.pth', 'a-1A2B3C4D.pth',
                 '1a2b3c4d.pth', '123e4567-e89b-12d3-a456-426614174abc.pth'):  # fmt: skip
        assert download.hash_in_name(f'https://example.org/{name}') is None
    assert download.hash_in_name('https://example.org/a-1a2b3c4d.pth?x=-99999999.pth') == '1a2b3c4d'


@pytest.mark.parametrize('hashed', [False, True])
@pytest.mark.parametrize('damage', ['cut', 'flipped', 'empty', 'another file'])
def test_a_damaged_file_in_the_cache_is_downloaded_again_once(damage, hashed, server):
    data = content(6)
    path = f'/nf-{sha8(data)}.pth' if hashed else '/nf.pth'
    server.answers[path] = send(data)
    assert load(server.url + path) == 6.0
    cached = server.cache / kept(server)[0]
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    cached.write_bytes(
        dict(cut=data[:-10], flipped=flipped, empty=b'').get(damage, data if hashed else b'<html>')
    )
    if damage == 'another file' and hashed:
        cached.write_bytes(content(7))
    assert load(server.url + path) == 6.0
    assert server.asked == [path] * 2
    cached.write_bytes(b'')
    server.answers[path] = send(b'<html>')
    with pytest.raises(CheckpointError):
        load(server.url + path)
    assert server.asked == [path] * 3


def test_an_interrupted_download(server, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    server.answers['/x.pth'] = send(content(1))
    monkeypatch.setattr(download.os, 'replace', stop)
    with pytest.raises(KeyboardInterrupt):
        load(f'{server.url}/x.pth')
    assert kept(server) == []


def test_a_cache_that_cannot_be_written(server):
    server.cache.parent.mkdir(parents=True)
    server.cache.write_text('a file')
    with pytest.raises(CheckpointNotFoundError, match='cannot download'):
        load(f'{server.url}/x.pth')


def test_keys_and_urls(server):
    buffer = io.BytesIO()
    torch.save({'model': {'a': torch.zeros(1)}, 'ema': {'a': torch.ones(1)}}, buffer)
    server.answers['/x.pth'] = send(buffer.getvalue())
    assert load(f'{server.url}/x.pth') == 0.0
    assert load(f'{server.url}/x.pth#ema') == 1.0
    assert server.asked == ['/x.pth']


@pytest.mark.slow
def test_several_processes(server):
    server.answers['/x.pth'] = send(content(8))
    code = (
        'import sys, nf_plugins; from mmengine.runner import CheckpointLoader as C; '
        "sys.exit(C.load_checkpoint(sys.argv[1])['state_dict']['a'][0].item() != 8)"
    )
    processes = [Apart(code, f'{server.url}/x.pth', code=True) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert len(kept(server)) == 1
