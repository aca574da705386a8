"""A file system that only Apache Beam can open; importing this registers it."""

import glob
import os

from apache_beam.io.localfilesystem import LocalFileSystem


class Elsewhere(LocalFileSystem):
    """elsewhere://<path> is <path> with a suffix, so that nothing but Beam finds it."""

    @classmethod
    def scheme(cls):
        return 'elsewhere'

    def join(self, base, *paths):
        return '/'.join([base.rstrip('/'), *paths])

    def has_dirs(self):
        return False

    @staticmethod
    def place(path):
        return path.replace('elsewhere://', '') + '.elsewhere' if path.startswith('elsewhere://') else path

    def create(self, path, *arguments, **options):
        return super().create(self.place(path), *arguments, **options)

    def open(self, path, *arguments, **options):
        return super().open(self.place(path), *arguments, **options)

    def rename(self, sources, paths):
        if any(os.path.exists(self.place(path)) for path in paths):
            raise OSError('as HDFS, it does not replace a file')
        super().rename([self.place(path) for path in sources], [self.place(path) for path in paths])

    def exists(self, path):
        return os.path.exists(self.place(path))

    def metadata(self, path):
        return super().metadata(self.place(path))

    def match_files(self, pattern):
        for path in glob.glob(self.place(pattern), include_hidden=True):
            found = super().metadata(path)
            yield type(found)(
                'elsewhere://' + path.removesuffix('.elsewhere'), found.size_in_bytes, found.last_updated_in_seconds
            )

    def match(self, patterns, limits=None):
        from apache_beam.io.filesystem import MatchResult

        return [MatchResult(pattern, list(self.match_files(pattern))) for pattern in patterns]

    def delete(self, paths):
        for path in paths:
            os.remove(self.place(path))
