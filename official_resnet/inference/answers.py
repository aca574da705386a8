"""Format what a network says about images: as a table for people, as JSON lines, or as CSV for a spreadsheet."""

import itertools
import json
import os
import pathlib
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from official_resnet.errors import one_line
from official_resnet.inference import spreadsheets

if TYPE_CHECKING:
    from official_resnet.inference.card_reader import Card
    from official_resnet.inference.predict import Guess

MAX_NAME_WIDTH = 32  # width limit of the table's column of names, in columns of a terminal
_OF_GUESS = ('name', 'id', 'probability')  # columns of CSV


class Answer(NamedTuple):
    """What predict_main says about an image."""

    file: pathlib.Path
    guesses: 'Sequence[Guess]'  # the likeliest first
    is_unsure: bool  # whether the best probability is below --min_probability
    copy: pathlib.Path | None  # of --copy_to
    explanation: dict[str, Any] | None  # {'index', 'name', 'file'}


Format = tuple[str, Callable[[Answer], str]]  # the text before all answers, and the function that formats one


def table(paths: Sequence[pathlib.Path], card: 'Card', top: int, width: int | None = None) -> Format:
    """Return the format of a table, whose columns fit all rows; paths are shortened to fit a terminal of `width`."""
    name_width = min(max(len('name'), *map(_width, card.names)), MAX_NAME_WIDTH)
    most = None if width is None else max(width - name_width - len('  rank    probability  unsure') - 1, len('file'))
    file_width = max(len('file'), *(_width(_shortened(path, most)) for path in paths))
    file_width = file_width if most is None else min(file_width, most)
    most_of_written = None if width is None else width - file_width - len('  rank  -> ') - 1

    def line(file, rank, name, probability, mark='') -> str:
        text = f'{_padded(file, file_width)}  {rank:>4}  {_padded(name, name_width)}  {probability:>11}  {mark}'
        return one_line(text.rstrip()) + '\n'

    def text(answer) -> str:
        lines = []
        for rank, guess in enumerate(answer.guesses, 1):
            first = (_shortened(answer.file, most), 'unsure' * answer.is_unsure) if rank == 1 else ('', '')
            lines.append(line(first[0], rank, guess.name, f'{guess.probability:.4f}', first[1]))
        if answer.copy:
            lines.append(line('', '', f'-> {_shortened(answer.copy, most_of_written)}', ''))
        if answer.explanation:
            name = f' ({answer.explanation["name"]})'
            room = None if most_of_written is None else most_of_written - _width(name)
            lines.append(line('', '', f'-> {_shortened(answer.explanation["file"], room)}{name}', ''))
        return ''.join(lines)

    return line('file', 'rank', 'name', 'probability'), text


def _shortened(path, width):
    """Return a path with … for its beginning if it takes more than `width` columns; its file name is kept whole."""
    text = str(path)
    folder, name = os.path.split(text)
    if width is None or not folder or _width(text) <= width:
        return text
    while folder and _width(f'…{folder}/{name}') > width:
        folder = folder[1:]
    return f'…{folder}/{name}'


def _width(text):
    """Return how many columns of a terminal a text takes: Chinese characters take two each, and accents none."""
    letters = (letter for letter in text if unicodedata.category(letter) not in ('Mn', 'Me', 'Cf'))
    return sum(1 + (unicodedata.east_asian_width(letter) in 'WF') for letter in letters)


def _padded(text, width):
    return text + ' ' * (width - _width(text))


def json_lines(paths: Sequence[pathlib.Path], card: 'Card', top: int) -> Format:
    """Return the format of a line of JSON for each image."""

    def text(answer) -> str:
        copy = None if answer.copy is None else str(answer.copy)
        row = {'file': str(answer.file), 'classes': [guess._asdict() for guess in answer.guesses]}
        more = {'is_unsure': answer.is_unsure, 'copy': copy, 'explanation': answer.explanation}
        return json.dumps(row | more) + '\n'

    return '', text


def csv_rows(paths: Sequence[pathlib.Path], card: 'Card', top: int) -> Format:
    """Return the format of a row for each image: the likeliest class first, the others in columns to the right."""
    top = min(top, card.num_classes)
    columns = ['file', *_OF_GUESS, 'is_unsure', 'copy', 'explanation']
    columns += [f'{name}_{rank}' for rank in range(2, top + 1) for name in _OF_GUESS]

    def text(answer) -> str:
        first, *others = [(guess.name, guess.id, round(guess.probability, 6)) for guess in answer.guesses]
        explanation = answer.explanation and answer.explanation['file']
        row = [answer.file, *first, str(answer.is_unsure).upper(), answer.copy, explanation, *itertools.chain(*others)]
        return spreadsheets.text([row])

    mark = spreadsheets.mark([*card.names, *map(str, paths)])
    return mark + spreadsheets.text([columns]), text
