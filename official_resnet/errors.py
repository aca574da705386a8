"""The exceptions that programs answer with one line, and one_line, which makes a text safe for a terminal."""


class UserError(ValueError):
    """A wrong path, file or flag value. Its message is one line that says how to fix it; programs exit with 1."""


class Damaged(UserError):
    """The content of a file is not what was written. damage.reported raises it."""


class Interrupted(KeyboardInterrupt):
    """SIGTERM or Ctrl-C ended the work; the message says where its state is saved. Programs exit with 128 + number."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.signal_number = signal_number


def one_line(text: object) -> str:
    """Return text as one line, with control characters replaced by '?', because a terminal may obey them.

    Example:
        >>> one_line('cat\\x1b[2J\\n.jpg')
        'cat?[2J .jpg'
    """
    return ''.join(c if c.isprintable() else '?' for c in ' '.join(str(text).splitlines()))
