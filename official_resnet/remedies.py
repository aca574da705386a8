"""What to say about errors of the system: the cause in words, and what to do. Read only when one has occurred."""

import errno
import os

# What to do about an error of reading or writing, where its cause decides that.
ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), 'free some space'),
    errno.ENAMETOOLONG: 'shorten its name',
    errno.EFBIG: 'free some space, or raise the limit of file sizes (ulimit -f)',
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR), 'move away the file that is in its place'),
    **dict.fromkeys((errno.EACCES, errno.EPERM), 'get the permission for it (chmod, chown)'),
    errno.EMFILE: 'raise the limit of open files (ulimit -n)',
    errno.ENFILE: 'close other programs, which have too many files open',
    errno.EIO: 'check its disk or network connection',
    errno.ESTALE: 'mount its network file system again',
}


def of_output(error: Exception) -> bool:
    """Return whether an error is of printing (see files.say): standard output has no reader or no room."""
    return isinstance(error, BrokenPipeError) or getattr(error, 'filename', None) == '<stdout>'


def of_writing(error: OSError | RuntimeError) -> str:
    """Return why a file cannot be written, and what to do; '' if an error has no such cause."""
    cause: BaseException | None = error
    while cause and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if not isinstance(cause, OSError) or of_output(cause):
        return ''
    if cause.errno == errno.ENXIO:  # of files.plain
        return f"'{cause.filename}' is not a plain file; move that away"
    reason = os.strerror(cause.errno) if cause.errno else str(cause)  # h5py's own text is long
    return f'{reason}; {ADVICE.get(cause.errno or 0, "make it writable")}'
