"""What a terminal is shown of a name."""

import pytest

from official_resnet import errors


@pytest.mark.parametrize(
    'text,expected',
    [
        ('Löwe, 獅子', 'Löwe, 獅子'),
        ('two\nlines\r\n', 'two lines'),
        ('\x1b[2J\a\x7f\u202e', '?[2J???'),
        (b'caf\xe9'.decode(errors='surrogateescape'), 'caf?'),
        (ValueError('a\tb'), 'a?b'),
    ],
)
def test_one_line_without_control_characters(text, expected):
    assert errors.one_line(text) == expected
