"""What hostile web servers can do to a download: nothing but end it with one line. Servers are on the loopback."""

import hashlib
import time
import tracemalloc

import pytest
from fixtures import hostile_servers
from fixtures.batches import message_of
from fixtures.hostile_servers import FILE

from official_resnet import bounds
from official_resnet.errors import UserError
from official_resnet.inputs import download, web

MD5 = hashlib.md5(FILE).hexdigest()


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Make all waiting short, and what is written little."""
    lower = {'silence_seconds': 0.1, 'slow_seconds': 0.2, 'noise_bytes': 1 << 18, 'download_bytes': 100_000}
    for name, value in lower.items():
        monkeypatch.setitem(bounds.BOUNDS, name, bounds.BOUNDS[name]._replace(value=value))
    monkeypatch.setattr(download, 'RETRY_SECONDS', 0)
    monkeypatch.setattr(download, 'ATTEMPTS', 2)
    monkeypatch.setenv('no_proxy', '127.0.0.1')


ALL = hostile_servers.WRONG | hostile_servers.CHANGED
OF_SIZES = ('length', 'chunk', 'end', 'cut off', 'seed')  # words in the names of rows which also matter without a size


@pytest.mark.parametrize(
    'what,knows_size',
    [(what, True) for what in ALL] + [(what, False) for what in ALL if any(word in what for word in OF_SIZES)],
)
def test_a_hostile_server_ends_the_download_with_one_line(what, knows_size, tmp_path):
    """Or with the right file, where it arrives in spite of all; in time, with little memory and disk."""
    tracemalloc.start()
    begin = time.monotonic()
    with hostile_servers.serve(ALL[what]) as url:
        try:
            download.fetch(url, tmp_path / 'file', len(FILE) if knows_size else None, MD5)
        except UserError as error:
            text = str(error)
            assert url in text and '--archive' in text and text.isprintable() and len(text) < 700, text
            assert not (tmp_path / 'file').exists()
        else:
            assert (tmp_path / 'file').read_bytes() == FILE
    assert time.monotonic() - begin < 8  # about 1 s on a quiet machine
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= (len(FILE) if knows_size else 100_000)


@pytest.mark.parametrize('what', hostile_servers.RIGHT)
def test_a_right_answer(what, tmp_path):
    with hostile_servers.serve(hostile_servers.RIGHT[what]) as url:
        download.fetch(url, tmp_path / 'file', None, MD5)
    assert (tmp_path / 'file').read_bytes() == FILE


def test_a_redirect_is_followed(tmp_path):
    with (
        hostile_servers.serve(hostile_servers.RIGHT['a length']) as right,
        hostile_servers.serve([hostile_servers.redirect(right.encode())]) as url,
    ):
        download.fetch(url, tmp_path / 'file', len(FILE), MD5)
    assert (tmp_path / 'file').read_bytes() == FILE


def test_a_slow_download_is_ended_and_can_be_continued(tmp_path):
    slow = [hostile_servers.OK, hostile_servers.length(5000), b'\r\n', FILE[:100], (b'', 0.05)]
    with hostile_servers.serve(slow) as url:
        message = message_of(download.fetch, url, tmp_path / 'file', len(FILE), MD5)
    assert 'less than 1000 bytes/s; 100 bytes are kept' in message or 'timed out; 100 bytes are kept' in message
    rest = [b'HTTP/1.1 206 Partial\r\nContent-Range: bytes 100-4999/5000\r\n', hostile_servers.length(4900), b'\r\n']
    with hostile_servers.serve([*rest, FILE[100:]]) as url:
        download.fetch(url, tmp_path / 'file', len(FILE), MD5)
    assert (tmp_path / 'file').read_bytes() == FILE


@pytest.mark.parametrize(
    'url',
    """
    http://..invalid/x http:///x http:// http://[::1/x http://h:abc/x http://h:99999/x http://h:0/x ftp://h/x h/x
    http://ü.invalid/x file:///etc/passwd //h/x http:x
    """.split()
    + ['http://' + 'a' * 64 + '.invalid/x', ''],
)
def test_an_address_with_a_typo(url, tmp_path):
    assert not web.is_address(url)
    message = message_of(download.fetch, url, tmp_path / 'file')
    assert f"url '{url}' is not an http or https address" in message and '--archive' in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('url', ['http://127.0.0.1:1/a b', 'http://127.0.0.1:1/\n', 'http://user@127.0.0.1:1/'])
def test_an_address_that_urllib_refuses(url, tmp_path):
    assert '--archive' in message_of(download.fetch, url, tmp_path / 'file')


@pytest.mark.parametrize('address', ['http://me:secret@127.0.0.1/x', 'http://secret@x.y/z', 'ftp://a:se/cret@x'])
def test_a_password_in_an_address_is_not_printed(tmp_path, address):
    message = message_of(download.fetch, address, tmp_path / 'x')
    assert 'secret' not in message and 'se/cret' not in message and '://' in message and '--url' in message
