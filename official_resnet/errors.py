"""The one exception that means: the user can fix this, and the message says how; and how it is printed."""


class UserError(ValueError):
    """A wrong path, file or flag value; programs print its one line and exit with 1."""


def one_line(text: object) -> str:
    """Return text as one line without control characters: names are a user's or a file's, and a terminal obeys some.

    Example:
        >>> one_line('cat\\x1b[2J\\n.jpg')
        'cat?[2J .jpg'
    """
    return ''.join(c if c.isprintable() else '?' for c in ' '.join(str(text).splitlines()))
