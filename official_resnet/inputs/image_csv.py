"""Your own images in a CSV file that has a row for each.

    path,label,split
    cats/1.jpg,cat,train
    /elsewhere/2.png,dog,test

Paths are absolute, or begin at the folder of the file. Without the column split, test images are set aside as in a
folder. Other columns are ignored. Semicolons or tabs may stand for the commas.
"""

import csv
import io
import os
import pathlib

from official_resnet import files
from official_resnet.errors import UserError
from official_resnet.inputs import classes
from official_resnet.inputs.listing import TEST_NAMES, TRAIN_NAMES, Listing, split_name

COLUMNS = {  # the names of a column, in any case; the first that is there is used
    'path': ('path', 'file_path', 'filepath', 'image_path', 'filename', 'file_name', 'file', 'image'),
    'label': ('label', 'class', 'category'),
    'split': ('split',),
}
REMEDY = 'pass a CSV file whose first line is path,label'  # the end of a message


def list_files(path: str | os.PathLike) -> Listing:
    """Return the Listing of a CSV file; without test images in its column split, all images are in 'train'.

    Raises:
        UserError: The file is not such a table, or it contradicts itself; an image is missing; a class has no image
            for training, or there is one class only.
    """
    parts: dict[str, list[tuple[pathlib.Path, str]]] = {}
    for file, (label, split, _) in _rows(path).items():
        parts.setdefault(split, []).append((pathlib.Path(file), label))
    train, test = (next((name for name in names if name in parts), '') for names in (TRAIN_NAMES, TEST_NAMES))
    if not train:
        raise UserError(f"'{path}' has no row for training; write train into the column split of some")
    names = sorted({label for _, label in parts[train]})
    if len(names) == 1:
        raise UserError(f"'{path}' has one class only, '{names[0]}'; add rows of another")
    if unknown := sorted({label for _, label in parts.get(test, ())} - set(names)):
        raise UserError(f"'{path}' has test images of {classes.listed(unknown)}, but none for training; add some")
    numbers = {name: i for i, name in enumerate(names)}
    splits = {
        split: sorted(((file, numbers[label]) for file, label in parts.get(name, ())), key=lambda row: (row[1], row[0]))
        for split, name in (('train', train), ('test', test))
    }
    unused = [file for name in parts.keys() - {train, test} for file, _ in parts[name]]
    return Listing(tuple(names), splits, {'train': unused, 'test': []}, test)


def _rows(path):
    """Return {file: (label, split, its line)} of a CSV file; the split of a file without that column is 'train'."""
    with files.read_errors(path, REMEDY, 'image_list '):
        try:
            text = files.read_text(path)
        except UnicodeDecodeError:
            raise UserError(f"image_list '{path}' is not UTF-8 text; save it as CSV in UTF-8") from None
    header = text.partition('\n')[0]
    reader = csv.reader(io.StringIO(text), delimiter=max(',;\t', key=header.count))
    found: dict[str, tuple[str, str, int]] = {}
    missing, folder = {}, os.path.dirname(path)
    try:
        columns = _columns(path, next(reader, []))
        for row in reader:
            if not any(map(str.strip, row)):
                continue
            where = f"'{path}', line {reader.line_num}"
            values = {name: row[i].strip() if i < len(row) else '' for name, i in columns.items()}
            for name, value in values.items():
                if not value:
                    raise UserError(f'{where}: the {name} is empty; write it, or remove the line')
            split = split_name(values.get('split', 'train'))
            if not split:
                raise UserError(f"{where}: '{values['split']}' is not a split; write train or test")
            file, label = os.path.join(folder, values['path']), classes.canonical(values['label'])
            other = found.setdefault(file, (label, split, reader.line_num))
            for mine, theirs in zip((label, split), other, strict=False):
                if mine != theirs:
                    fault = f"'{values['path']}' is '{mine}' here, but '{theirs}' in line {other[2]}"
                    raise UserError(f'{where}: {fault}; remove one of the lines')
            if other[2] == reader.line_num and not os.path.isfile(file):
                missing[values['path']] = reader.line_num
    except csv.Error as error:
        raise UserError(f"'{path}', line {reader.line_num}: {error}; {REMEDY}") from None
    if missing:
        first, line = next(iter(missing.items()))
        fault = f"there is no file for {len(missing)} of the {len(found)} images, the first is '{first}' in line {line}"
        remedy = f"put them below '{folder or '.'}', where paths begin, or remove the lines"
        raise UserError(f"'{path}': {fault}; {remedy}")
    return found


def _columns(path, header):
    """Return {'path', 'label' and, if it is there, 'split': the number of its column}."""
    names = [name.strip().casefold() for name in header]
    found = {key: next((names.index(name) for name in known if name in names), None) for key, known in COLUMNS.items()}
    for key in ('path', 'label'):
        if found[key] is None:
            there = f'the columns {classes.listed(header)}' if any(names) else 'no columns'
            raise UserError(f"image_list '{path}' has {there}, but none is called {key}; {REMEDY}")
    return {key: place for key, place in found.items() if place is not None}
