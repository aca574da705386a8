"""HTTP for downloads. A server may answer anything, at any speed; what it does is bounded here.

urllib reads a redirect's body whole, follows ftp://, and would wait forever for a server that sends a byte from time to
time, endless headers, or endless `100 Continue`.
"""

import http.client
import io
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator

from official_resnet import bounds, damage
from official_resnet.errors import one_line

CHUNK = 1 << 16  # bytes
_NOISE_PER_BYTE = 10  # chunks of one byte have 5
SCHEMES = ('http', 'https')


class Malformed(Exception):
    """An address or an answer that is not HTTP. Another attempt would not help."""


class Slow(ConnectionError):
    """A connection that brings too little of the file."""


def is_address(url: str) -> bool:
    """Return whether a text is an http or https address in ASCII, with a host of a valid form and without a user."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = (parts.hostname or '').encode('idna')  # UnicodeError for an empty or long part of the name
        is_plain = '@' not in parts.netloc and url.isascii() and url.isprintable()  # urllib cannot send a user's name
        return bool(host) and parts.scheme in SCHEMES and parts.port != 0 and is_plain
    except ValueError:
        return False


def shown(url: str) -> str:
    """Return an address that `is_address` refuses for a message: without a user's name and password."""
    return one_line(re.sub('(?s)(?<=//).*@', '', url)[:200])


class Answer:
    """A server's answer to a GET, after redirects. Close it.

    Attributes:
        status: 200, 206, or 416.
        content_range: The header of that name, or ''.
        length: The number of bytes that the answer declares, None if it does not.
    """

    def __init__(self, url: str, headers: dict[str, str], authorization: str | None = None):
        """Send a GET. `authorization` is the header of that name, which is not sent to the target of a redirect.

        Raises:
            urllib.error.HTTPError: Another status.
            urllib.error.URLError: No connection.
            ConnectionError: The connection failed, or is too slow.
            Malformed: An address or the answer is malformed.
        """
        self._pace = _Pace()
        opener = urllib.request.OpenerDirector()
        for kind in (urllib.request.HTTPErrorProcessor, urllib.request.HTTPDefaultErrorHandler):
            opener.add_handler(kind())
        for handler in (urllib.request.ProxyHandler(), _Redirects(), _HTTP(self._pace), _HTTPS(self._pace)):
            opener.add_handler(handler)
        try:
            request = urllib.request.Request(url, headers=headers)
            if authorization:
                request.add_unredirected_header('Authorization', authorization)
            self._response = opener.open(request, timeout=bounds.limit('silence_seconds'))
        except urllib.error.HTTPError as error:
            if 'Range' not in headers or error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                error.close()
                raise
            self._response = error
        except urllib.error.URLError:
            raise
        except Exception as error:
            raise self._explained(error) from error
        self.status = self._response.status
        self.content_range = self._response.headers.get('Content-Range', '')
        declared = self._response.headers.get('Content-Length')
        if declared is not None and not re.fullmatch(r'\d{1,18}', declared.strip(), re.ASCII):
            self.close()
            raise Malformed(f'Content-Length: {one_line(declared[:50])}')
        self.length = None if declared is None else int(declared)

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes as they arrive. Every error is a ConnectionError, unlike the OSErrors of the disk."""
        while True:
            try:
                chunk = self._response.read1(CHUNK)  # read() would lose what arrived before a time-out
            except Exception as error:
                explained = self._explained(error)
                raise explained if isinstance(explained, ConnectionError) else ConnectionError(explained) from error
            if not chunk:
                return
            self._pace.brings(len(chunk))
            yield chunk

    def close(self) -> None:
        self._response.close()

    @staticmethod
    def _explained(error):
        """Return what anything raised by urllib or http.client means: they raise many exceptions for a few bytes."""
        if isinstance(error, Slow | MemoryError):
            return error
        if isinstance(error, OSError | http.client.HTTPException) and not isinstance(error, http.client.InvalidURL):
            return ConnectionError(damage.reason(error))
        return Malformed(damage.reason(error))


class _Pace:
    """What the connections of one answer bring. A window of time without enough bytes of the file ends them."""

    def __init__(self):
        self.noise = self.num_bytes = self.total = 0  # bytes beside the file; of the file in this window; of the file
        self.end = time.monotonic() + bounds.limit('slow_seconds')

    def seconds_left(self) -> float:
        """Return how long the window still lasts; Slow if it brought too little."""
        left = self.end - time.monotonic()
        if left <= 0:
            seconds, least = bounds.limit('slow_seconds'), bounds.limit('least_speed')
            if self.num_bytes < seconds * least:
                raise Slow(f'{self.num_bytes} bytes in {seconds} seconds, less than {least} bytes/s')
            left, self.num_bytes, self.end = seconds, 0, self.end - left + seconds
        return left

    def receives(self, num_bytes) -> None:
        """Count bytes of the connection."""
        self.noise += num_bytes
        if self.noise > bounds.limit('noise_bytes') + _NOISE_PER_BYTE * self.total:
            raise Slow(f'{self.noise} bytes beside {self.total} bytes of the file')

    def brings(self, num_bytes) -> None:
        """Count bytes of the file."""
        self.noise -= num_bytes  # which `receives` has counted
        self.num_bytes += num_bytes
        self.total += num_bytes


class _Connection(io.RawIOBase):
    """The bytes of a socket, at a pace."""

    def __init__(self, sock, pace):
        self.socket, self.pace = sock, pace
        self.file = sock.makefile('rb', buffering=0)  # keeps the socket open: http.client closes its own reference

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        end, count = time.monotonic() + bounds.limit('silence_seconds'), None
        while count is None:
            left = end - time.monotonic()
            self.socket.settimeout(max(0.001, min(left, self.pace.seconds_left())))
            try:
                count = self.socket.recv_into(buffer)
            except TimeoutError:  # or a window of the pace has ended
                if left <= 0:
                    raise
        self.pace.receives(count)
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


class _Paced(urllib.request.AbstractHTTPHandler):
    """What the handlers of http and https have in common."""

    def __init__(self, pace):
        super().__init__()
        self.pace = pace

    def do_open(self, http_class, req, **http_conn_args) -> http.client.HTTPResponse:
        """Open a connection whose answer is read at the pace."""

        def answer(sock, *args, **more) -> http.client.HTTPResponse:
            response = http.client.HTTPResponse(sock, *args, **more)
            response.fp.close()
            response.fp = io.BufferedReader(_Connection(sock, self.pace))
            return response

        def connection(*args, **more) -> http.client.HTTPConnection:
            made = http_class(*args, **more)
            made.response_class = answer
            return made

        return super().do_open(connection, req, **http_conn_args)


class _HTTP(_Paced, urllib.request.HTTPHandler):
    pass


class _HTTPS(_Paced, urllib.request.HTTPSHandler):
    pass


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to http and https only, and do not read their bodies."""

    def redirect_request(self, req, fp, code, msg, headers, newurl) -> urllib.request.Request | None:
        fp.close()
        if not is_address(newurl):
            raise Malformed(f'it leads to {shown(newurl)}')
        return super().redirect_request(req, fp, code, msg, headers, newurl)
