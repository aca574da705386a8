"""What must hold for any tar file: indexed, or refused in one line."""

from fixtures import ilsvrc
from fixtures.any_bytes import EDITS, edited, files, quick, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from official_resnet.building import tars
from official_resnet.errors import UserError

SYNSETS = ('n01440764', 'n01443537')
NAMES = st.from_regex(r'[a-zA-Z0-9_ é]{1,60}', fullmatch=True).map('{}.JPEG'.format)


@quick
@given(
    pictures=st.tuples(*[st.dictionaries(NAMES, st.binary(max_size=1200), min_size=1, max_size=4)] * 2),
    tar_format=st.sampled_from([0, 1, 2]),
)
def test_pictures_in_a_tar_of_tars_are_found_where_they_are(pictures, tar_format):
    inner = {
        f'{synset}.tar': ilsvrc.tar_bytes(named, tar_format) for synset, named in zip(SYNSETS, pictures, strict=True)
    }
    with files(ilsvrc.tar_bytes(inner, tar_format)) as [path]:
        found = tars.index('train', path, SYNSETS, log=lambda line: None)
        assert {(found.synset(i), found.basename(i)): found.read_bytes(i) for i in range(len(found))} == {
            (synset, name): data
            for synset, named in zip(SYNSETS, pictures, strict=True)
            for name, data in named.items()
        }


TAR = ilsvrc.tar_bytes(
    {
        f'{synset}.tar': ilsvrc.tar_bytes({f'{synset}_{i}.JPEG': bytes([i]) * 700 for i in range(3)})
        for synset in SYNSETS
    }
)


@settings(quick, max_examples=150)
@given(edits=EDITS, aligned=st.booleans())
def test_a_changed_tar_is_indexed_or_refused(edits, aligned):
    """Never anything else: no picture beyond the end of the file, no exception but ours."""
    if aligned:  # a header that is gone or another: the likelier damage of a header
        edits = [(place // 512 * 512, deleted // 512 * 512, inserted) for place, deleted, inserted in edits]
    data = edited(TAR, edits)
    with files(data) as [path]:
        try:
            found = tars.index('train', path, SYNSETS, log=lambda line: None)
        except UserError as error:
            assert refused(error, path), error
        else:
            assert (found.rows['offset'] + found.rows['size'] <= len(data)).all()
            assert all(len(found.read_bytes(i)) == found.rows[i]['size'] for i in range(len(found)))
