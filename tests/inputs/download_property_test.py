"""However a download is cut, it ends whole: properties of download.fetch with a server on the loopback."""

import pathlib
import tempfile

import pytest
from fixtures.any_bytes import quick
from fixtures.archives import GOOD, MD5, SIZE, reset
from hypothesis import example, given
from hypothesis import strategies as st

from official_resnet.errors import UserError
from official_resnet.inputs import download


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(download, 'RETRY_SECONDS', 0)
    monkeypatch.setenv('no_proxy', '127.0.0.1')


PLACES = st.integers(0, SIZE) | st.sampled_from([0, 1, SIZE - 1, SIZE])


@quick
@given(
    offset=PLACES,
    is_right=st.booleans(),
    surplus=st.sampled_from([0, 0, 1, 5000]),
    knows_range=st.booleans(),
    cuts=st.lists(PLACES, max_size=5),
    knows_size=st.booleans(),
    status=st.sampled_from([None, None, 404, 503]),
)
@example(SIZE, True, 0, True, [], False, None)
@example(SIZE, True, 1, True, [], True, None)
def test_a_download_ends_whole_however_often_it_is_cut(
    server, offset, is_right, surplus, knows_range, cuts, knows_size, status
):
    """From any .part, right or wrong: what stands under the final name is whole, and failures keep or drop the part.

    As many calls as the server cuts responses, and two, are enough: one may end with a wrong part that is removed.
    """
    reset(server, cuts=list(cuts), knows_range=knows_range, status=status)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, 'archive')
        part = pathlib.Path(folder, 'archive.part')
        begun = (GOOD[:offset] if is_right else bytes(offset)) + b'x' * surplus
        part.write_bytes(begun)
        for _ in range(len(cuts) + 3):
            try:
                download.fetch(server.url, path, SIZE if knows_size else None, MD5)
                break
            except UserError as error:
                assert '\n' not in str(error) and '--archive' in str(error) and not path.exists()
                if status:  # which is not asked where the part is whole
                    assert f'{status}' in str(error) or 'removed' in str(error)
                    server.status = status = None
        assert path.read_bytes() == GOOD and not part.exists()


@quick
@example(size=0, md5='0' * 32, knows_size=True)
@given(size=st.integers(0, 2 * SIZE), md5=st.from_regex('[0-9a-f]{32}', fullmatch=True), knows_size=st.booleans())
def test_a_file_of_another_size_or_sum_gets_no_name(server, size, md5, knows_size):
    reset(server)
    size = size if size != SIZE and knows_size else None
    with tempfile.TemporaryDirectory() as folder, pytest.raises(UserError, match='instead of') as caught:
        download.fetch(server.url, pathlib.Path(folder, 'archive'), size, md5)
    assert '\n' not in str(caught.value) and '--archive' in str(caught.value)
