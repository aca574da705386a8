"""The card beside a .keras file, NAME.card.json: how pictures become its input, what its outputs are called.

    spec          fields of ResNetSpec
    num_classes   outputs
    labels        [name, ...], or 'imagenet1000', 'imagenet1001' (0 is the background), 'cifar10', 'unknown'
    input         of our own programs (`write_card`): `normalization`, a name in NORMALIZATIONS;
                  `size`, [h, w] of the net's input; `channels`, 'RGB' or 'grey'; `pad_from`, [h, w] of the
                  pictures that zeros around them bring to `size`, as MNIST's 28 x 28 to 32 x 32
                  of a converted net (checkpoints_tools): the fields of Input

What else their writers know is not read here.
"""

import dataclasses
import json
import pathlib

from official_resnet import files, resnet_spec
from official_resnet.errors import UserError
from official_resnet.inputs import datasets
from official_resnet.inputs.normalization import NORMALIZATIONS, affine_name

MAX_SIZE = 4096  # of a net's input, pixels a side
MAX_CLASSES = 1_000_000
REMEDY = 'train or convert the net again, which writes one'
_TABLES = ('imagenet1000', 'imagenet1001', 'cifar10', 'unknown')


@dataclasses.dataclass(frozen=True)
class Input:
    """What a converted net is fed: an image in RGB and 0..255 in another order, times `scale`, less `mean`, by `std`.

    Attributes:
        channels: 'RGB' or 'BGR', the order of `mean`, `std` and the net's input.
        scale: of values in 0..255, as 1 or 1/255.
        mean, std: a number a channel, after `scale`.
        size: height and width, pixels, of the published evaluation.
        resize: shorter side before the central crop of `size`; None resizes the whole image to `size`.
        interpolation: 'bilinear' or 'bicubic'.
        normalization: a name in NORMALIZATIONS, in place of channels, scale, mean and std where they cannot say it.
    """

    channels: str = 'RGB'
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    size: int = 224
    resize: int | None = 256
    interpolation: str = 'bilinear'
    normalization: str | None = None

    @property
    def name(self) -> str:
        """The name in NORMALIZATIONS of what turns RGB in 0..255 into the net's input."""
        return self.normalization or affine_name(self.channels, self.scale, self.mean, self.std)


@dataclasses.dataclass(frozen=True)
class Card:
    """What a net makes of pictures, and what its outputs mean.

    Attributes:
        spec: ResNetSpec.
        num_classes: outputs.
        names: of the classes, in their order; ids: WordNet's, or None for each.
        normalization: a name in NORMALIZATIONS.
        num_channels: 3, or 1 for grey.
        size: (h, w) of what is cut out of a picture.
        net_size: (h, w) of the net's input; zeros fill the rest.
        resize: 'cover' cuts the largest middle of the shape of `size` and resizes it; 'squash' resizes the whole;
            a number resizes the shorter side to it, then cuts `size` out of the middle.
        interpolation: 'bilinear' or 'bicubic', antialiased.
        experiment: what a block function of its own changes of the net; None if it has none.
    """

    spec: resnet_spec.ResNetSpec
    num_classes: int
    names: tuple
    ids: tuple
    normalization: str
    num_channels: int
    size: tuple
    net_size: tuple
    resize: int | str = 'cover'
    interpolation: str = 'bilinear'
    experiment: dict | None = None


def write_card(
    path, spec, normalization, image_shape, input_shape, class_names, num_classes=None, resize=None, **others
):
    """Write the card of a net of our own, whole or not at all.

    Args:
        path: NAME.card.json beside NAME.keras.
        spec: ResNetSpec.
        normalization: a name in NORMALIZATIONS.
        image_shape: (h, w, c) of the pictures it was trained on.
        input_shape: (h, w, c) of its input; where larger, pictures are padded.
        class_names: a name a class.
        num_classes: where the net has more outputs than there are names.
        resize: what the shorter side of a picture is resized to before image_shape is cut out; None for the whole.
        **others: further fields, for other readers.

    Returns:
        The Card.

    Raises:
        UserError: no card could say this; nothing was written.
    """
    content = {
        'spec': dataclasses.asdict(spec),
        'num_classes': num_classes or len(class_names),
        'labels': list(class_names),
        'input': {
            'normalization': normalization,
            'size': list(input_shape[:2]),
            'channels': 'grey' if input_shape[2] == 1 else 'RGB',
        },
        **others,
    }
    if tuple(image_shape[:2]) != tuple(input_shape[:2]):
        content['input']['pad_from'] = list(image_shape[:2])
    if resize:
        content['input']['resize'] = resize
    text = json.dumps(content, indent=1) + '\n'
    card = _Fields(path, json.loads(text)).card()
    files.write_text(path, text)
    return card


def read_card(path):
    """Return the Card in a file.

    Raises:
        UserError: it is missing or damaged; says where.
    """
    path = pathlib.Path(path)
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise UserError(
            f'there is no card {path}, and without it nobody knows what pictures the net wants; {REMEDY}'
        ) from None
    except OSError as error:
        raise UserError(f'cannot read the card {path}: {error.strerror}; {REMEDY}') from error
    except (ValueError, RecursionError) as error:
        raise UserError(f'the card {path} is no JSON; {REMEDY}') from error
    return _Fields(path, content).card()


def with_names(card, path):
    """Return the card with the class names of a text file, one a line.

    Raises:
        UserError: it cannot be read, or has another number of lines than the net classes.
    """
    try:
        names = tuple(pathlib.Path(path).expanduser().read_text(encoding='utf-8-sig').splitlines())
    except OSError as error:
        raise UserError(
            f"cannot read the names of the classes in '{path}': {error.strerror}; "
            'pass a file with the name of a class on each line'
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is no text in UTF-8; pass a file with the name of a class on each line") from error
    if len(names) != card.num_classes:
        raise UserError(
            f"'{path}' has {len(names)} lines, the net {card.num_classes} classes; "
            'pass a file with the name of a class on each line'
        )
    return dataclasses.replace(card, names=names, ids=(None,) * len(names))


class _Fields:
    """A card's JSON, read field by field; each mistake is one UserError."""

    def __init__(self, path, content):
        self.path, self.content = path, content

    def card(self):
        """Return the Card."""
        self.require(isinstance(self.content, dict), 'the whole', self.content, 'an object')
        num_classes = self.get(self.content, 'num_classes')
        self.require(_is_whole(num_classes, MAX_CLASSES), 'num_classes', num_classes, f'1..{MAX_CLASSES}')
        ids, names = self.labels(num_classes)
        fed = self.get(self.content, 'input')
        self.require(isinstance(fed, dict), 'input', fed, 'an object')
        convention = self.converted(fed) if 'scale' in fed else self.own(fed)
        experiment = self.content.get('experiment')
        self.require(experiment is None or isinstance(experiment, dict), 'experiment', experiment, 'an object or null')
        return Card(self.spec(), num_classes, names, ids, **convention, experiment=experiment)

    def spec(self):
        spec = self.get(self.content, 'spec')
        try:
            return resnet_spec.ResNetSpec.from_json(spec)
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f'the card {self.path} has a spec of no net ({error}); {REMEDY}') from error

    def labels(self, num_classes):
        """Return (ids, names) of the classes; those beyond a list of names are called by their numbers."""
        labels = self.get(self.content, 'labels')
        if isinstance(labels, list):
            self.require(
                all(isinstance(name, str) for name in labels) and len(labels) <= num_classes,
                'labels',
                labels,
                f'at most {num_classes} names',
            )
            rows = [(None, name) for name in labels]
        else:
            self.require(labels in _TABLES, 'labels', labels, f'a list of names, or one of {", ".join(_TABLES)}')
            rows = _label_rows(labels)
            self.require(not rows or len(rows) == num_classes, 'labels', labels, f'a table of {num_classes} classes')
        rows += [(None, f'class {i}') for i in range(len(rows), num_classes)]
        return tuple(zip(*rows, strict=True))

    def own(self, fed):
        normalization, channels = self.normalization(fed), self.get(fed, 'channels', 'input.')
        self.require(channels in ('RGB', 'grey'), 'input.channels', channels, "'RGB' or 'grey'")
        net_size = self.size(fed, 'size')
        size = self.size(fed, 'pad_from') if fed.get('pad_from') is not None else net_size
        self.require(
            all(a <= b for a, b in zip(size, net_size, strict=True)), 'input.pad_from', size, f'at most {net_size}'
        )
        resize = fed.get('resize')
        self.require(
            resize is None or _is_whole(resize, MAX_SIZE) and resize >= max(size),
            'input.resize',
            resize,
            f'null or {max(size)}..{MAX_SIZE}',
        )
        return {
            'normalization': normalization,
            'num_channels': 3 if channels == 'RGB' else 1,
            'size': size,
            'net_size': net_size,
            'resize': resize or 'cover',
        }

    def converted(self, fed):
        channels, scale, size, resize, interpolation = (
            self.get(fed, name, 'input.') for name in ('channels', 'scale', 'size', 'resize', 'interpolation')
        )
        mean, std = (self.numbers(fed, name) for name in ('mean', 'std'))
        self.require(channels in ('RGB', 'BGR'), 'input.channels', channels, "'RGB' or 'BGR'")
        self.require(_is_number(scale) and scale > 0, 'input.scale', scale, 'a number above 0')
        self.require(min(std) > 0, 'input.std', std, 'above 0')
        self.require(_is_whole(size, MAX_SIZE), 'input.size', size, f'1..{MAX_SIZE}')
        self.require(
            resize is None or _is_whole(resize, MAX_SIZE) and resize >= size,
            'input.resize',
            resize,
            f'null or {size}..{MAX_SIZE}',
        )
        self.require(
            interpolation in ('bilinear', 'bicubic'), 'input.interpolation', interpolation, "'bilinear' or 'bicubic'"
        )
        normalization = None if fed.get('normalization') is None else self.normalization(fed)
        return {
            'normalization': Input(channels, scale, mean, std, size, resize, interpolation, normalization).name,
            'num_channels': 3,
            'size': (size, size),
            'net_size': (size, size),
            'resize': resize or 'squash',
            'interpolation': interpolation,
        }

    def normalization(self, fed):
        name = self.get(fed, 'normalization', 'input.')
        try:
            NORMALIZATIONS[name]
        except (KeyError, TypeError, AttributeError):
            self.require(False, 'input.normalization', name, f'one of {", ".join(NORMALIZATIONS)}')
        return name

    def size(self, fed, name):
        size = self.get(fed, name, 'input.')
        self.require(
            isinstance(size, list) and len(size) == 2 and all(_is_whole(side, MAX_SIZE) for side in size),
            f'input.{name}',
            size,
            f'[height, width], each 1..{MAX_SIZE}',
        )
        return tuple(size)

    def numbers(self, fed, name):
        numbers = self.get(fed, name, 'input.')
        self.require(
            isinstance(numbers, list) and len(numbers) == 3 and all(map(_is_number, numbers)),
            f'input.{name}',
            numbers,
            'three numbers',
        )
        return tuple(numbers)

    def get(self, fields, name, prefix=''):
        if name not in fields:
            raise UserError(f'the card {self.path} has no {prefix}{name}; {REMEDY}')
        return fields[name]

    def require(self, is_right, name, value, right):
        if not is_right:
            text = json.dumps(value)
            text = text if len(text) < 60 else f'{text[:56]} ...'
            raise UserError(f'the card {self.path} has {name} {text}, not {right}; {REMEDY}')


def _is_whole(value, most):
    return type(value) is int and 1 <= value <= most


def _is_number(value):
    return type(value) in (int, float) and abs(value) < 1e30  # finite, also as float32


def _label_rows(table):
    """Return [(id, name), ...] of a named table, [] of 'unknown'."""
    if table == 'cifar10':
        return [(None, name) for name in datasets.DATASETS['cifar10'].class_names]
    rows = list(datasets.imagenet_classes())
    return {'imagenet1000': rows, 'imagenet1001': [(None, 'background'), *rows], 'unknown': []}[table]
