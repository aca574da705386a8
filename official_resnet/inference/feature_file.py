"""Write the features of images, batch by batch, into F.npz, F.csv or F.parquet. Imports no TensorFlow.

    F.npz       `features` float32 [n, d] and `files` [n], for numpy.load
    F.csv       a row for each image: its file (see spreadsheets), then d numbers that read back as the same float32
    F.parquet   columns `file` and `features`, a list of d float32

The rows are collected in the folder F.npz.part. If the program is stopped, the same command continues after the last
whole batch, and the file is the one that an undisturbed run writes.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from official_resnet import damage, files
from official_resnet.errors import UserError
from official_resnet.inference import spreadsheets

FORMATS = ('.npz', '.csv', '.parquet')
ROW_GROUP = 4096  # images that a Parquet file holds together
_ANOTHER = 'delete that folder, or pass another --output'


class Collection:
    """The rows of a feature file that is being made.

    Attributes:
        num_batches: Number of batches that are complete.
        num_rows: Number of images in them.
    """

    def __init__(self, folder: pathlib.Path, num_features: int):
        self._rows, self._files, self._width = folder / 'rows.float32', folder / 'files.jsonl', num_features
        self._batches: list[list[str]] = []
        for line in self._files.read_bytes().splitlines(keepends=True) if self._files.exists() else []:
            with contextlib.suppress(ValueError):  # the last line was cut off
                if line.endswith(b'\n'):
                    self._batches.append(json.loads(line))
        rows = self._rows.stat().st_size // (4 * num_features) if self._rows.exists() else 0
        while self.num_rows > rows:
            self._batches.pop()
        for path, size in ((self._rows, 4 * num_features * self.num_rows), (self._files, len(self._lines()))):
            path.touch()
            os.truncate(path, size)

    @property
    def num_batches(self) -> int:
        return len(self._batches)

    @property
    def num_rows(self) -> int:
        return sum(map(len, self._batches))

    def add(self, names: Sequence[str], features: np.ndarray) -> None:
        """Append a batch: the files of its images, and their features, float32 [n, d]."""
        with open(self._rows, 'ab') as rows:
            rows.write(np.ascontiguousarray(features, '<f4').tobytes())
            rows.flush()
            os.fsync(rows.fileno())
        self._batches.append(list(names))
        with open(self._files, 'ab') as lines:
            lines.write(_line(self._batches[-1]))

    def write(self, path: pathlib.Path) -> None:
        """Write the feature file, atomically."""
        names = [name for batch in self._batches for name in batch]
        shape = len(names), self._width
        table = np.memmap(self._rows, '<f4', 'r', shape=shape) if names else np.zeros(shape, '<f4')
        with files.replacing(path) as part:
            _WRITERS[path.suffix](part, names, table)

    def _lines(self):
        return b''.join(map(_line, self._batches))


def _line(names):
    return json.dumps(names).encode() + b'\n'


@contextlib.contextmanager
def collecting(path: str | os.PathLike, about: dict, num_features: int) -> Iterator[Collection]:
    """Yield the Collection of a feature file. When the block ends, the file is written and the folder deleted.

    Args:
        path: The file to write; see `check_output`.
        about: What decides the features, as JSON values. A folder that holds other features is refused.
        num_features: Number of features of an image.

    Raises:
        UserError: Another process is writing the file, or the folder holds other features, or cannot be written.
    """
    path = pathlib.Path(path).expanduser()
    folder = path.with_name(f'{path.name}.part')
    with files.write_errors(f"'{path}'", ', or pass another --output'), contextlib.ExitStack() as stack:
        files.make_folder(folder)
        try:
            stack.enter_context(files.lock(folder / '.lock'))
        except BlockingIOError:
            raise UserError(f"another process is writing '{path}'; wait for it, or pass another --output") from None
        with damage.reported(folder / 'about.json', _ANOTHER):
            stored = files.read_json(folder / 'about.json')
        if stored not in (None, json.loads(json.dumps(about))):
            different = [name for name in about if stored.get(name) != about[name]]
            raise UserError(f"'{folder}' has features of another command ({', '.join(different)}); {_ANOTHER}")
        files.write_json(folder / 'about.json', about)
        collection = Collection(folder, num_features)
        yield collection
        collection.write(path)
        for name in ('rows.float32', 'files.jsonl', 'about.json', '.lock'):
            (folder / name).unlink()
        folder.rmdir()


def check_output(path: str | os.PathLike) -> None:
    """Raise UserError unless a feature file can be written: its suffix is one of FORMATS, and it does not exist."""
    path = pathlib.Path(path).expanduser()
    if path.suffix not in FORMATS:
        raise UserError(f'--output={path} must end in {", ".join(FORMATS)}; pass another name')
    if path.exists():
        raise UserError(f'--output={path} exists; delete it, or pass another name')


def digest(paths: Sequence[str | os.PathLike]) -> str:
    """Return the SHA-256 of a list of paths."""
    return hashlib.sha256('\0'.join(map(str, paths)).encode('utf-8', 'surrogateescape')).hexdigest()


def _write_npz(part, names, table):
    with open(part, 'wb') as file:  # numpy.savez would append .npz to the name
        np.savez(file, features=table, files=np.array(names, str))


def _write_csv(part, names, table):
    with open(part, 'w', newline='', encoding='utf-8', errors='surrogateescape') as file:
        file.write(spreadsheets.text([['file', *(f'feature{i}' for i in range(table.shape[1]))]]))
        for name, row in zip(names, table, strict=True):
            file.write(spreadsheets.text([[name, *row]]))  # with the shortest digits of a float32


def _write_parquet(part, names, table):
    import pyarrow
    from pyarrow import parquet

    width = table.shape[1]
    texts = [str(name.encode('utf-8', 'backslashreplace'), 'utf-8') for name in names]  # not every name is UTF-8
    schema = pyarrow.schema([('file', pyarrow.string()), ('features', pyarrow.list_(pyarrow.float32(), width))])
    with parquet.ParquetWriter(part, schema) as writer:
        for start in range(0, len(names), ROW_GROUP):
            rows = np.ascontiguousarray(table[start : start + ROW_GROUP]).reshape(-1)
            column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows), width)
            column_of_names = pyarrow.array(texts[start : start + ROW_GROUP], pyarrow.string())
            writer.write_table(pyarrow.Table.from_arrays([column_of_names, column], schema=schema))


_WRITERS = {'.npz': _write_npz, '.csv': _write_csv, '.parquet': _write_parquet}
