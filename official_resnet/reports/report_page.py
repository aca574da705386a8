"""Show a report, or a comparison, as one HTML file: figures and images are inside it, and it has no JavaScript."""

import base64
import functools
import importlib.resources
import io
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import official_resnet
from official_resnet.errors import UserError, one_line
from official_resnet.inputs import affine
from official_resnet.inputs.listing import root_of
from official_resnet.reports import evaluate, report
from official_resnet.reports.report_texts import TEXTS

if TYPE_CHECKING:
    import keras

MAX_CLASSES = 100  # with more, only the best and the worst classes have a row
MAX_ROWS, MAX_PAIRS = 20, 30  # rows of the best and of the worst classes; rows of pairs, or half as many with a matrix
MAX_MAPS, COLUMNS = 16, 8  # feature maps of a layer; maps or filters side by side
LEAST, QUALITY = 128, 85  # pixels to which smaller images of the gallery are enlarged; quality of their JPEGs


def gallery(subject: report.Subject, found: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Return {list of the gallery: [(image, Grad-CAM for the guess)]} as data URIs; '' if there is no Grad-CAM."""
    from official_resnet.inference import grad_cam
    from official_resnet.inputs.normalization import NORMALIZATIONS

    result: dict[str, list[tuple[str, str]]] = {}
    for name, entries in found['gallery'].items():
        rows = [entry['image'] for entry in entries]
        images = report.images_at(subject.test, rows, subject.batch_size, subject.view)
        result[name] = []
        for image, entry in zip(images, entries, strict=True):  # one by one, which needs little memory
            try:
                inputs = NORMALIZATIONS[subject.card.normalization](image[None])
                cam = grad_cam.grad_cam(subject.model, inputs, [entry['guess']])[0]
                uris = [_jpeg(part) for part in grad_cam.panels(_pixels(image), cam, LEAST)[::2]]  # without the map
            except UserError:  # not a network of resnet_model
                uris = [_jpeg(grad_cam.panels(_pixels(image), np.zeros(image.shape[:2]), LEAST)[0]), '']
            result[name].append((uris[0], uris[1]))
    return result


def inside(subject: report.Subject, path: str | os.PathLike | None) -> dict[str, Any]:
    """Return what is seen inside a network when it sees an image: the file `path`, or None: the first test image.

    Returns:
        {'filters': URI or '', 'image': URI, 'name': its file or number, 'guesses': [(class, probability)], 'maps':
        [{'layer', 'height', 'width', 'shown', 'count', 'image': URI}], 'is_chosen': whether `path` was passed}.

    Raises:
        UserError: The file is not an image.
    """
    import tensorflow as tf

    from official_resnet.inference import grad_cam, predict
    from official_resnet.inputs.normalization import NORMALIZATIONS

    card, model = subject.card, subject.model
    if path is None:
        image = report.images_at(subject.test, [0], subject.batch_size, subject.view)
        inputs, name = NORMALIZATIONS[card.normalization](image), subject.test.paths[0] if subject.test.paths else 0
    else:
        image = predict.prepare(pathlib.Path(path), card)[None]
        inputs, name = predict.network_input(card, image), str(path)
    try:
        features = grad_cam.features(model)
        found = features(inputs, training=False).items()
        outputs = {layer: tf.cast(maps[0], tf.float32).numpy() for layer, maps in found if len(maps.shape) == 4}
    except (ValueError, AttributeError):  # not a network of resnet_model
        outputs = {}
    maps = []
    for layer, values in outputs.items():
        height, width, count = values.shape
        chosen = np.sort(np.argsort(-values.std((0, 1)), kind='stable')[:MAX_MAPS])
        mosaic = _mosaic(np.moveaxis(values[..., chosen], -1, 0)[..., None])
        row = {'layer': layer, 'height': height, 'width': width, 'shown': len(chosen), 'count': count}
        maps.append(row | {'image': mosaic})
    probabilities = tf.nn.softmax(model(inputs, training=False)).numpy()
    best = [(guess.name, guess.probability) for guess in predict.guesses(card, probabilities, 3)[0]]
    shown = _jpeg(grad_cam.panels(_pixels(image[0]), np.zeros(image.shape[1:3]), LEAST)[0])
    about = {'name': name, 'is_chosen': path is not None, 'guesses': best, 'maps': maps}
    return {'filters': _filters(model, card), 'image': shown, **about}


def _filters(model: 'keras.Model', card):
    """Return the kernels of the first convolution as the data URI of an image, or '' if they have other channels."""
    import keras

    kernel = next((layer.kernel.numpy() for layer in model.layers if isinstance(layer, keras.layers.Conv2D)), None)
    if kernel is None or kernel.shape[2] not in (1, 3):
        return ''
    kernel = kernel[:, :, ::-1] if 'BGR' in card.normalization else kernel
    return _mosaic(np.moveaxis(kernel.astype(np.float32), -1, 0), most=64)


def _mosaic(images, most=MAX_MAPS):
    """Return images, float [n, h, w, 1 or 3], as one data URI: each in the full range, transparent lines between."""
    images = images[:most]
    low, high = (function(images, axis=(1, 2, 3), keepdims=True) for function in (np.min, np.max))
    scaled = (255 * (images - low) / np.maximum(high - low, 1e-12)).round().astype(np.uint8)
    count, height, width, channels = images.shape
    columns = min(COLUMNS, count)
    gap = max(1, height // 16)
    rows = math.ceil(count / columns)
    size = rows * (height + gap) - gap, columns * (width + gap) - gap
    canvas = np.zeros((*size, channels + 1), np.uint8)
    for i, image in enumerate(scaled):
        top, left = (height + gap) * (i // columns), (width + gap) * (i % columns)
        canvas[top : top + height, left : left + width, :channels] = image
        canvas[top : top + height, left : left + width, channels] = 255
    return _uri(Image.fromarray(canvas, 'LA' if channels == 1 else 'RGBA'), 'PNG', optimize=True)


def _pixels(image):
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def _jpeg(image):
    return _uri(image, 'JPEG', quality=QUALITY)


def _uri(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f'data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}'


def show(found: Mapping[str, Any], language: str, gallery_images: Mapping[str, Any], looked: Mapping[str, Any]) -> str:
    """Return the page of a report.

    Args:
        found: The report, see report.collect.
        language: One of report_texts.LANGUAGES.
        gallery_images: What `gallery` returns.
        looked: What `inside` returns.
    """
    from official_resnet.reports import figures

    words, classes = TEXTS[language], found['classes']
    seen = sorted((row for row in classes if row['count']), key=lambda row: row['top1'])
    shown = seen if len(classes) <= MAX_CLASSES else [*seen[:MAX_ROWS], *seen[MAX_ROWS:][-MAX_ROWS:]]
    matrix = evaluate.matrix(found) if len(classes) <= evaluate.MAX_MATRIX else None
    curves = found.get('curves')
    origin = {name: found[name] for name in ('origin', 'recipe', 'config', 'machine') if found.get(name)}
    point = found.get('checkpoint')
    unfinished = ''
    if point and not point['has_ended'] and point['step'] < point['last_step']:
        unfinished = words['unfinished'].format(**point)
    tested = curves['test'] if curves else []
    has_curves = bool(curves and (curves['steps'] or curves['test']))
    return _render(
        language,
        report=found,
        short_path=functools.partial(_short_path, root_of(found['dataset'].removeprefix('folder:'))),
        rows=shown,
        num_seen=len(seen),
        matrix=matrix,
        pairs=found['confusions'][: MAX_PAIRS // 2 if matrix else MAX_PAIRS],
        curves=figures.run_curves([found], words) if has_curves else {},
        reliability=figures.reliability(found['calibration']['bins'], words),
        results=report.summary(found),
        gallery_images=gallery_images,
        inside=looked,
        settings=report.flatten(origin),
        unfinished=unfinished,
        notes=dict.fromkeys(found['notes'], ()),
        file=found.get('origin', {}).get('file'),
        best=max(tested, key=lambda row: row['accuracy']) if len(tested) > 1 else None,
    )


def show_comparison(found: Mapping[str, Any], language: str) -> str:
    """Return the page of a comparison, see report.compare."""
    from official_resnet.reports import figures

    empty: dict[str, Any] = {'curves': {'steps': [], 'test': []}}
    runs = [run if run['curves'] else empty for run in found['runs']]
    has_curves = any(run['curves']['steps'] or run['curves']['test'] for run in runs)
    curves = figures.run_curves(runs, TEXTS[language]) if has_curves else {}
    notes: dict[str, list[int]] = {}  # {line: numbers of the runs that it is about}
    for number, run in enumerate(found['runs'], 1):
        for line in run['notes']:
            notes.setdefault(line, []).append(number)
    return _render(language, comparison=found, curves=curves, notes=notes)


def _render(language, **values):
    import jinja2

    source = importlib.resources.files(__package__).joinpath('report.html.jinja').read_text(encoding='utf-8')
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {'percent': _percent, 'line': _line, 'number': _number, 'breaks': _breaks}
    return environment.from_string(source).render(t=TEXTS[language], version=official_resnet.__version__, **values)


def _short_path(folder, path):
    """Return a path relative to the folder of the test images; if it lies elsewhere, its last two parts."""
    inside = path.removeprefix(f'{folder}/')
    return inside if inside != path else '/'.join(pathlib.PurePath(path).parts[-2:])


def _percent(share, digits=2):
    return '–' if share is None else f'{share:.{digits}%}'


def _number(value, digits=4):
    if isinstance(value, float):
        return f'{value:.{digits}f}'
    return '–' if value is None else f'{value:,}' if type(value) is int else _line(value)


def _line(value):
    """Return a value as one line of text without control characters, for example of a path or a list.

    A normalization gets the short name by which a flag may ask for it.
    """
    if isinstance(value, list):
        value = ', '.join(map(str, value))
    short = {name: flag for flag, name in affine.PUBLISHED.items()}
    return one_line('–' if value is None else short.get(value, value))


def _breaks(value):
    """Return `_line` as markup in which long names may break at / _ and ., and not inside words and numbers."""
    import markupsafe

    return markupsafe.Markup(re.sub(r'(?<=\w)([/_.])(?=[^\W\d])', r'\1<wbr>', str(markupsafe.escape(_line(value)))))


def write(page: str, path: str | os.PathLike) -> None:
    """Write a page as a file. UserError: it cannot be written."""
    path = pathlib.Path(path)
    evaluate.write_files(path.parent, {path.name: page})


def names_of(sources: Sequence[str]) -> list[str]:
    """Return short names of several networks: the last parts of their paths, as many as tell them apart.

    >>> names_of(['runs/a/model', 'runs/b/model'])
    ['a/model', 'b/model']
    """
    parts = [pathlib.PurePath(source).parts for source in sources]
    for count in range(1, max(map(len, parts)) + 1):
        names = ['/'.join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(sources)
