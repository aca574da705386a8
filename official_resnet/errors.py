"""UserError, for mistakes that the user can fix; Damaged, for files; one_line, which is safe for a terminal."""


class UserError(ValueError):
    """A wrong path, file or flag value. Its message is one line that says how to fix it; programs exit with 1."""


class Damaged(UserError):
    """The content of a file is not what was written. damage.reported raises it."""


def one_line(text: object) -> str:
    """Return text as one line, with control characters replaced by '?', because a terminal may obey them.

    Example:
        >>> one_line('cat\\x1b[2J\\n.jpg')
        'cat?[2J .jpg'
    """
    return ''.join(c if c.isprintable() else '?' for c in ' '.join(str(text).splitlines()))
