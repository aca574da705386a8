"""Download CIFAR-10 or CIFAR-100 (binary version) and unpack it.

    python cifar10_download_and_extract.py --data_dir ~                      # makes ~/cifar-10-batches-bin
    python cifar10_download_and_extract.py --data_dir ~ --dataset=cifar100   # makes ~/cifar-100-binary
    python cifar10_download_and_extract.py --data_dir ~ --archive=PATH       # offline

The download is about 170 MB; unpacked, it needs as much again. Size and MD5 are checked, an interrupted download
continues where it stopped, and a complete data set is left alone.
"""

import re
import sys

try:
    from absl import flags

    from official_resnet.command_line import definer, program
    from official_resnet.errors import UserError
    from official_resnet.inputs import download
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")


def define_flags() -> flags.FlagValues:
    """Return the flags as a set of their own, which leaves absl's global FLAGS alone."""
    values = flags.FlagValues()
    define = definer.Definer(values)
    define.string('data_dir', '/tmp/cifar10_data', 'The folder to fill. It is created if it is missing.', 'dd')
    define.enum('dataset', 'cifar10', list(download.ARCHIVES), 'The data set to download.')
    text = 'Use a local cifar-10-binary.tar.gz (or cifar-100-binary.tar.gz) instead: its path or file:// URL.'
    define.string('archive', None, text)
    text = 'The MD5 to require. By default, a download must have the official one, and --archive is not checked.'
    define.string('md5', None, text)
    define.string('url', None, 'Advanced: another address of the archive, such as a mirror.')
    return values


def main(argv: list[str]) -> int:
    """Run with the arguments `argv`, whose first is the program's name, and return the exit code."""

    def fetch(values) -> None:
        if values.archive is not None and values.url is not None:
            raise UserError('--archive and --url cannot be used together; leave one of them out')
        is_sum = values.md5 is None or re.fullmatch('[0-9a-fA-F]{32}', values.md5.strip())
        if not is_sum and not values.archive:  # checked before a download; a local archive is compared at once
            raise UserError(f'--md5={values.md5} must be 32 hexadecimal digits')
        download.download_and_extract(values.dataset, values.data_dir, values.archive, values.md5, values.url)

    return program.run_program(argv, __doc__, define_flags(), fetch)


if __name__ == '__main__':
    sys.exit(main(sys.argv))
