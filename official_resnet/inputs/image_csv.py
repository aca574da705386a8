"""Your own images in a CSV file that has a row for each, or in one for training and another for testing.

    path,label,split
    cats/1.jpg,cat,train
    /elsewhere/2.png,dog,test

Paths are absolute, relative to the folder of the file, or begin with ~/. Backslashes, as on
Windows, may stand for the slashes. Without the column split, the images of a second file are for testing, and without a
second file, test images are set aside as in a folder. Other columns are ignored; but without a column split, one that
holds only names of splits is refused. Semicolons or tabs may replace the commas.
"""

import collections
import csv
import io
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from official_resnet import files
from official_resnet.errors import UserError
from official_resnet.inputs import classes
from official_resnet.inputs.listing import TEST_NAMES, TRAIN_NAMES, Listing, split_name

COLUMNS = {  # the names of a column, in upper or lower case, with _ or spaces; the first that is there is used
    'path': ('path', 'file_path', 'filepath', 'image_path', 'filename', 'file_name', 'file', 'image'),
    'label': ('label', 'class', 'category'),
    'split': ('split',),
}
DELIMITERS = ',;\t'
REMEDY = 'pass a CSV file whose first line is path,label'  # the end of a message


class _Row(NamedTuple):
    """A row: the image, the values of its columns, the number of its first line, and the list that has it."""

    file: str
    path: str
    label: str
    split: str
    line: int
    place: str


def list_files(paths: Sequence[str]) -> Listing:
    """Return the Listing of CSV files. Without test images in a column split or a second file, all are in 'train'.

    Raises:
        UserError: A file is not such a table, or they contradict each other; an image is missing; a class has no image
            for training, or there is one class only. But all images may be for testing.
    """
    found: dict[str, _Row] = {}
    notes: list[str] = []
    for number, path in enumerate(paths):
        notes += _read(path, 'test' if number else 'train', found)
    parts: dict[str, list[_Row]] = {}
    for row in found.values():
        parts.setdefault(split_name(row.split), []).append(row)
    train, test = (next((name for name in names if name in parts), '') for names in (TRAIN_NAMES, TEST_NAMES))
    names = sorted({row.label for row in parts[train or test]})
    if train and len(names) == 1:
        raise UserError(f"'{parts[train][0].place}' has one class only, '{names[0]}'; add rows of another")
    unknown = {row.label: row.place for row in parts.get(test, ()) if row.label not in names}
    for place in unknown.values():
        raise UserError(
            f"'{place}' has test images of {classes.listed(sorted(unknown))}, but none for training; add some"
        )
    numbers = {name: i for i, name in enumerate(names)}
    splits = {
        split: sorted(
            ((pathlib.Path(row.file), numbers[row.label]) for row in parts.get(name, ())),
            key=lambda file: (file[1], file[0]),
        )
        for split, name in (('train', train), ('test', test))
    }
    for name in sorted(parts.keys() - {train, test}):
        few = classes.listed(row.path for row in parts[name])
        notes.append(f"rows of the split '{parts[name][0].split}', which is not used ({len(parts[name])}): {few}")
    test_name = parts[test][0].split if test else ''
    return Listing(tuple(names), splits, {'train': [], 'test': []}, test_name, notes=tuple(notes))


def _read(path, split, found):
    """Add the rows of a CSV file to `found`, {image: _Row}, and return lines on what is ignored.

    `split` is that of all rows, if there is no column for it.
    """
    with files.read_errors(path, REMEDY, 'image_list '):
        try:
            text = files.read_text(path)
        except UnicodeDecodeError:
            raise UserError(f"image_list '{path}' is not UTF-8 text; save it as CSV in UTF-8") from None
    if not text.strip():
        raise UserError(f"image_list '{path}' is empty; {REMEDY}")
    rows: list[_Row] = []
    splits: dict[int, set[str]] = collections.defaultdict(set)  # the splits that the values of a column stand for
    line = 1
    try:
        reader = csv.reader(io.StringIO(text), delimiter=_delimiter(text.partition('\n')[0]), strict=True)
        header = next(reader, [])
        columns = _columns(path, header)
        ignored = [i for i in range(len(header)) if i not in columns.values()]
        unsure = [] if 'split' in columns else ignored
        line = reader.line_num + 1
        for values in reader:
            if any(map(str.strip, values)):
                rows.append(row := _row(path, columns, values, line, split))
                _require_same(row, found.setdefault(os.path.normpath(row.file), row))
                for i in unsure:
                    splits[i].add(split_name(values[i]) if i < len(values) else '')
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"'{path}', line {line}: {error}; close its quotes, or {REMEDY}") from None
    if not rows:
        raise UserError(f"image_list '{path}' has a first line, but no rows; add a row for each image")
    _require_files(path, rows)
    if marked := [header[i].strip() for i in unsure if '' not in splits[i] and len(splits[i]) > 1]:
        fault = f"the column '{marked[0]}' has only the names of splits"
        raise UserError(f"image_list '{path}': {fault}; call it split, or remove it")
    few = classes.listed((header[i].strip() for i in ignored), 10)
    return [f'columns that are not used ({len(ignored)}): {few}'] if ignored else []


def _row(path, columns, values, line, split):
    """Return the _Row of the values in a line. Raise UserError if one is missing or is not a split."""
    where = f"'{path}', line {line}"
    values = {name: values[i].strip() if i < len(values) else '' for name, i in columns.items()}
    for name, value in values.items():
        if not value:
            raise UserError(f'{where}: the {name} is empty; write it, or remove the line')
    split = values.get('split', split)
    if not split_name(split):
        raise UserError(f"{where}: '{split}' is not a split; write train or test")
    place, folder = values['path'], os.path.dirname(path)
    if '\\' in place and not os.path.exists(os.path.join(folder, place)):
        place = place.replace('\\', '/')
    file = os.path.join(folder, os.path.expanduser(place) if place.startswith('~/') else place)
    return _Row(file, values['path'], classes.canonical(values['label']), split, line, path)


def _require_same(row, other):
    """Raise UserError if two rows of the same file contradict each other."""
    pairs = (row.label, other.label), (row.split, other.split)
    for (mine, theirs), form in zip(pairs, (str, split_name), strict=True):
        if mine != theirs and form(mine) != form(theirs):
            place = f'line {other.line}' if other.place == row.place else f"'{other.place}', line {other.line}"
            fault = f"'{row.path}' is '{mine}' here, but '{theirs}' in {place}"
            raise UserError(f"'{row.place}', line {row.line}: {fault}; remove one of the lines")


def _require_files(path, rows):
    """Raise UserError if images are missing."""
    if missing := [row for row in rows if not os.path.isfile(row.file)]:
        first, folder = missing[0], os.path.dirname(path) or '.'
        fault = f"there is no file for {len(missing)} of the {len(rows)} images, the first is '{first.path}'"
        is_whole = first.path.startswith(('/', '~/'))
        remedy = 'correct its path' if is_whole else f"put them below '{folder}', where paths begin"
        raise UserError(f"'{path}': {fault} in line {first.line}; {remedy}, or remove the lines")


def _places(header):
    """Return {key of COLUMNS: the number of its column}, without those that the header lacks."""
    names = [name.strip().casefold().replace(' ', '_') for name in header]
    found = {key: next((names.index(name) for name in known if name in names), None) for key, known in COLUMNS.items()}
    return {key: place for key, place in found.items() if place is not None}


def _delimiter(line):
    """Return the delimiter with which the first line names path and label, else the one that it has most often."""
    for delimiter in DELIMITERS:
        if {'path', 'label'} <= _places(next(csv.reader([line], delimiter=delimiter), [])).keys():
            return delimiter
    return max(DELIMITERS, key=line.count)


def _columns(path, header):
    """Return _places(header). Raise UserError if there is no path or no label."""
    found = _places(header)
    for key in ('path', 'label'):
        if key not in found:
            names = f'{key} (or {", ".join(COLUMNS[key][1:])})'
            there = f'has the columns {classes.listed(header, 10)}, but none is called {names}'
            raise UserError(f"image_list '{path}' {there if any(header) else 'has an empty first line'}; {REMEDY}")
    return found
