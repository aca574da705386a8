"""Download CIFAR-10 or CIFAR-100 (binary version) and unpack it.

    python cifar10_download_and_extract.py --data_dir ~                      # makes ~/cifar-10-batches-bin
    python cifar10_download_and_extract.py --data_dir ~ --dataset=cifar100   # makes ~/cifar-100-binary
    python cifar10_download_and_extract.py --data_dir ~ --archive=PATH       # without a network

About 170 MB to download, as much again on disk. Size and MD5 are checked, an interrupted download continues
where it stopped, and a data set that is complete is left alone.
"""

import re
import signal
import sys

try:
    from absl import flags

    from official_resnet.command_line import definer, program
    from official_resnet.inputs import download
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")


def define_flags():
    """Return the flags, in a set of their own: importing or calling this leaves absl's FLAGS alone."""
    values = flags.FlagValues()
    define = definer.Definer(values)
    define.string('data_dir', '/tmp/cifar10_data', 'The folder to fill; created if need be.', 'dd')
    define.enum('dataset', 'cifar10', list(download.ARCHIVES), 'Which data set.')
    define.string(
        'archive',
        None,
        'Path or file:// URL of a local cifar-10-binary.tar.gz (or cifar-100-binary.tar.gz) to use instead of a '
        'download.',
    )
    define.string(
        'md5',
        None,
        'The checksum to insist on. Without it a download must have the official one, and --archive may have any.',
    )
    define.string('url', None, 'Advanced: another address of the archive, such as a mirror.')
    flags.register_multi_flags_validator(
        ['archive', 'url'],
        lambda v: v['archive'] is None or v['url'] is None,
        '--archive and --url exclude each other',
        values,
    )
    flags.register_multi_flags_validator(  # before a download; a local archive is compared at once
        ['md5', 'archive'],
        lambda v: v['md5'] is None or v['archive'] or re.fullmatch('[0-9a-fA-F]{32}', v['md5'].strip()),
        '--md5 must be 32 hexadecimal digits',
        values,
    )
    return values


def main(argv):
    """Run with the arguments `argv` (program name first); return the exit code."""

    def fetch(values):
        download.download_and_extract(values.dataset, values.data_dir, values.archive, values.md5, values.url)

    return program.run_program(argv, __doc__, define_flags(), fetch)


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that the temporary folder goes
    sys.exit(main(sys.argv))
