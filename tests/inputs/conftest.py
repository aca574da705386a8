"""A server for the tests of downloads."""

import threading

import pytest
from fixtures import loopback
from fixtures.archives import Handler


@pytest.fixture(scope='module')
def server():
    """A server that records requests in .ranges; .cuts says after how many bytes each response breaks off."""
    with loopback.serve(Handler, may_close=threading.Event()) as server:
        yield server
        server.may_close.set()
