"""Files of weights from the web, in torch's cache folder.

``torch.hub`` has three faults: it waits for a silent server for ever, it keeps an incomplete
download, and it confuses files with the same name in two folders. So this module has its own
download.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag, urlsplit

import torch
from mmengine.logging import print_log

from nf_plugins.errors import CheckpointError, CheckpointNotFoundError

from .safe_load import safe_load

TIMEOUT = 30.0
"""Seconds without an answer, or without ``SLOWEST`` bytes each, after which a download stops."""
SLOWEST = 256
"""Bytes per second; a slower server counts as silent."""

_CHUNK = 1 << 16


def cache_path(url: str) -> Path:
    """Where a URL's file is kept: its name, with a hash of the whole URL.

    Example:
        >>> [cache_path(f'https://example.org/{name}').name for name in ('a/m.pth', 'm.pth?v=1')]
        ['m.800b1d5b9fc03df1.pth', 'm.d3b342bf7d69f705.pth']
    """
    url = urldefrag(url).url
    stem, suffix = os.path.splitext(os.path.basename(urlsplit(url).path))
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    return cache_folder() / f'{stem[:100]}.{digest}{suffix[:20]}'


def cache_folder() -> Path:
    """torch's folder of downloaded checkpoints, in ``TORCH_HOME``."""
    return Path(torch.hub.get_dir(), 'checkpoints')


def hash_in_name(url: str) -> str | None:
    """The start of the SHA-256 that a name promises (``name-<sha8>.pth``), or None.

    Eight decimal digits are a date or a count and promise nothing.

    Example:
        >>> hash_in_name('https://example.org/nf_20260101-1a2b3c4d.pth')
        '1a2b3c4d'
    """
    name = os.path.basename(urlsplit(url).path)
    found = re.search(r'-([0-9a-f]{8}|[0-9a-f]{64})\.[a-z]+$', name)
    return found[1] if found and not found[1].isdigit() else None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with open(path, 'rb') as file:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def has_hash(path: Path, start: str | None) -> bool:
    """Whether a file's SHA-256 starts so; None fits any file."""
    return start is None or sha256_of(path).startswith(start)


def fetch(url: str, again: bool = False) -> tuple[Path, bool]:
    """Download a file, unless the cache has it.

    Args:
        url: ``http://`` or ``https://``.
        again: Whether to download it in any case.

    Returns:
        The file, and whether it was downloaded now.

    Raises:
        CheckpointNotFoundError: It cannot be downloaded.
        CheckpointError: It is not the file that its name promises.
    """
    try:
        url = urldefrag(url).url
        path, start = cache_path(url), hash_in_name(url)
        # With the hash in its name, what torch.hub or mmengine has downloaded does as well.
        known = [path, *([cache_folder() / os.path.basename(urlsplit(url).path)] if start else [])]
        for cached in () if again else known:
            if cached.is_file() and has_hash(cached, start):
                return cached, False
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(url, path, start)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, CheckpointError):
            raise
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            reason = f'{error.code} {error.reason}'
        else:
            reason = str(getattr(error, 'reason', error)) or type(error).__name__
        reason = ' '.join(reason.split())
        raise CheckpointNotFoundError(f'cannot download {url}: {reason}') from None
    return path, True


def load_url(url: str, map_location: Any = 'cpu') -> Any:
    """Load a checkpoint from the web; one that the cache holds damaged is downloaded once more.

    What cannot be loaded does not stay in the cache.

    Raises:
        CheckpointError: The file cannot be downloaded, is damaged, or is refused.
    """
    path, fresh = fetch(url)
    while True:
        try:
            return safe_load(path, map_location, name=url)
        except CheckpointError as error:
            if fresh:
                path.unlink(missing_ok=True)
                raise
            print_log(f'{error}; the cache held it', logger='current')
        path, fresh = fetch(url, again=True)


def _download(url: str, path: Path, start: str | None) -> None:
    """Download a file, which takes its name when it is complete and right."""
    temporary = path.with_name(f'{path.name}.{os.getpid()}-{time.monotonic_ns()}.partial')
    print_log(f'downloading {url} to {path}', logger='current')
    request = urllib.request.Request(url, headers={'User-Agent': 'nf_plugins'})
    try:
        with _OPENER.open(request, timeout=TIMEOUT) as response, open(temporary, 'xb') as file:
            length = response.headers.get('Content-Length')
            total = int(length) if length and length.isdigit() else None
            bar = torch.hub.tqdm(total=total, disable=not os.isatty(0), unit='B', unit_scale=True)
            with bar:
                while chunk := response.read1(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
            if total is not None and file.tell() != total:
                raise ConnectionError(f'cut off after {file.tell()} of {total} bytes')
            file.flush()
            os.fsync(file.fileno())
        if not has_hash(temporary, start):
            raise CheckpointError(f'{url} is damaged or another file: SHA-256 is not {start}...')
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class _Watched(io.RawIOBase):
    """What a server sends, headers and lengths of chunks too, as long as it sends enough."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self.raw, self.began, self.received = raw, time.monotonic(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.raw.readinto(buffer) or 0
        self.received += count
        passed = time.monotonic() - self.began
        if passed > TIMEOUT:
            if self.received < SLOWEST * passed:
                raise TimeoutError(f'the server sent {self.received} bytes in {passed:.0f} s')
            self.began, self.received = time.monotonic(), 0
        return count

    def close(self) -> None:
        self.raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fp = io.BufferedReader(_Watched(self.fp.detach()))


class _HTTP(urllib.request.HTTPHandler):
    class _Connection(http.client.HTTPConnection):
        response_class = _Response

    def http_open(self, req: Any) -> Any:
        return self.do_open(self._Connection, req)


class _HTTPS(urllib.request.HTTPSHandler):
    class _Connection(http.client.HTTPSConnection):
        response_class = _Response

    def https_open(self, req: Any) -> Any:
        return self.do_open(self._Connection, req, context=self._context)  # type: ignore[attr-defined]  # no public name


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to the web alone, and from https to nothing less."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, new: str):
        if urlsplit(new).scheme not in {'https', urlsplit(req.full_url).scheme}:
            raise urllib.error.HTTPError(new, code, f'redirected to {new}', headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, new)


_OPENER = urllib.request.build_opener(_HTTP, _HTTPS, _Redirects)
