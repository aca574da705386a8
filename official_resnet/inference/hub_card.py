"""Write README.md beside an exported network: a model card with the header that the Hugging Face hub reads."""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from official_resnet import checkpoints, files
from official_resnet.errors import UserError, one_line
from official_resnet.inference import card_reader, formats
from official_resnet.inputs import affine

NAME = 'README.md'
_MARK = '<!-- Written by official_resnet/export_main.py for {}. Once that is deleted, another export replaces this. -->'
HUB_DATASETS = {  # ours -> the hub's
    'cifar10': 'uoft-cs/cifar10',
    'cifar100': 'uoft-cs/cifar100',
    'mnist': 'ylecun/mnist',
    'fashion_mnist': 'zalando-datasets/fashion_mnist',
    'imagenet': 'ILSVRC/imagenet-1k',
}
MAX_NAMES = 100  # of classes that the example has; Labels has all
HUB_LICENCES = ('apache-2.0', 'bsd-2-clause', 'bsd-3-clause', 'cc-by-nc-4.0', 'mit')  # of the published weights


def require_place(output: pathlib.Path) -> None:
    """Raise UserError if README.md beside `output` is not ours, or describes another file that is still there."""
    path = output.parent / NAME
    if not os.path.lexists(path):
        return
    mark = re.escape(_MARK).replace(r'\{\}', '(.+)')
    with files.read_errors(path, 'pass another --output'):
        found = re.search(f'^{mark}$', str(files.read_bytes(path, 'text_bytes'), 'utf-8', 'replace'), re.MULTILINE)
    if not found:
        fault = f"'{path}' was not written by this program and would be overwritten"
        raise UserError(f'{fault}; pass an --output in another folder')
    if found[1] != output.name and os.path.lexists(output.parent / found[1]):
        raise UserError(f"'{path}' describes {found[1]}, which is beside it; pass an --output in another folder")


def of_run(network: pathlib.Path, card_path: pathlib.Path) -> dict[str, Any]:
    """Return what is known about the training of a network: `dataset`, `accuracy`, `epoch`, `published`, all optional.

    Args:
        network: The .keras file or the checkpoint. A run's model_dir has config.json and metrics.jsonl.
        card_path: The network's card. Those of published weights say where they are from.
    """
    published = (files.read_json(card_path) or {}).get('published')
    if isinstance(published, dict):
        return {'published': {str(key): str(value) for key, value in published.items()}}
    folder = network.parents[1] if network.suffix == '.npz' else network.parent
    config = (files.read_json(folder / 'config.json') or {}).get('config')
    dataset = config.get('dataset') if isinstance(config, dict) else None
    if not isinstance(dataset, str):
        return {}
    lines = [line for line in checkpoints.read_metrics(folder) if line['split'] == 'test']
    known: dict[str, Any] = {'dataset': dataset}
    if lines:
        step = int(network.stem.rpartition('-')[2]) if network.suffix == '.npz' else None
        line = max(lines, key=lambda line: line['accuracy']) if network.stem == 'best' else lines[-1]
        if step in (None, line['step']):
            known |= {'accuracy': line['accuracy'], 'epoch': line['epoch']}
    return known


def text(
    name: str,
    card: card_reader.Card,
    choice: Mapping[str, Any],
    run: Mapping[str, Any],
    rows: Mapping[str, str],
    command: str,
) -> str:
    """Return the text of README.md.

    Args:
        name: The name of the exported file.
        card: The network's card.
        choice: The values of the flags `to`, `dtype`, `preprocessing`, `batch_size`, `license`.
        run: What `of_run` returns.
        rows: {what was compared or measured: result}.
        command: The command that made the file.
    """
    title = f'ResNet-{card.spec.resnet_size} version {card.spec.version}, {card.num_classes} classes'
    to = formats.FORMATS[choice['to']]
    parts = [
        _header(title, choice, run, to),
        _MARK.format(name),
        f'# {title}, for {to.runtime}',
        f'`{name}` is a deep residual network ([1512.03385](https://arxiv.org/abs/1512.03385)), {choice["dtype"]}. '
        f'{_trained(run)}.',
        f'## Input and output\n\n{_interface(card, choice)}',
        *_example(name, card, choice),
        f'## Labels\n\n{_labels(card)}',
        *([f'## Published weights\n\n{_table(run["published"])}'] if 'published' in run else []),
        f'## Compared with the original\n\n{_table(rows)}',
        f'## Made by\n\n```bash\n{command}\n```\n\n{_table(formats.versions(choice["to"]))}',
    ]
    return '\n\n'.join(parts) + '\n'


def _header(title, choice, run, to):
    """Return the YAML header. Each value is JSON, which is YAML on one line."""
    precision = [] if choice['dtype'] == 'float32' else [choice['dtype']]
    fields = {'library_name': to.library, 'pipeline_tag': 'image-classification'}
    fields['tags'] = ['resnet', 'image-classification', *to.tags, *precision]
    if licence := choice['license'] or _licence_of(run):
        fields['license'] = licence
    if dataset := HUB_DATASETS.get(run.get('dataset', '')):
        fields['datasets'] = [dataset]
        if 'accuracy' in run:
            metric = {'type': 'accuracy', 'value': round(run['accuracy'], 6), 'name': 'test accuracy before the export'}
            result = {'task': {'type': 'image-classification'}, 'metrics': [metric]}
            result['dataset'] = {'type': dataset, 'name': run['dataset'], 'split': 'test'}
            fields |= {'metrics': ['accuracy'], 'model-index': [{'name': title, 'results': [result]}]}
    return '\n'.join(['---', *(f'{key}: {json.dumps(value)}' for key, value in fields.items()), '---'])


def _licence_of(run):
    """Return the licence of published weights as the hub calls it, or None."""
    stated = run.get('published', {}).get('licence', '').partition(';')[0].lower()  # terms may follow
    return stated if stated in HUB_LICENCES else None


def _trained(run):
    if 'published' in run:
        return 'Its weights were published by others, see below'
    if not run:
        return 'How it was trained is not known'
    told = f'It was trained on {"a folder of images" if run["dataset"].startswith("folder:") else run["dataset"]}'
    if 'accuracy' in run:
        told += f'. Before the export, its test accuracy was {run["accuracy"]:.4f}, after epoch {run["epoch"]}'
    return told


def _interface(card, choice):
    """Return what the graph takes and returns."""
    number = choice['batch_size'] or 'n'

    def listed(size) -> str:
        return f'[{number}, {size[0]}, {size[1]}, {card.num_channels}]'

    colours = 'RGB' if card.num_channels == 3 else 'grey'
    how = affine.in_words(card.normalization)
    how += f', surrounded by zeros to {list(card.net_size)}' * (card.size != card.net_size)
    resize = {'cover': 'its largest central part of that shape is resized', 'squash': 'it is resized as a whole'}
    made = resize.get(card.resize, f'its shorter side is resized to {card.resize}, and the centre is cropped')
    turned = 'turned as its EXIF says' if card.uses_exif else 'not turned as its EXIF says'
    made = f'An image is prepared as in evaluation: it is {turned}; if it has another size, {made} '
    made += f'({card.interpolation}).'
    if choice['to'] == 'torch':
        result = 'The weights alone, under the names of torchvision (CIFAR networks: of akamaster). The network of '
        result += 'PyTorch takes float32 [n, c, h, w], normalised.'
        return f'{result} {made}\n\n- normalisation: {how}'
    if not choice['preprocessing']:
        result = f'- input: float32 {listed(card.net_size)}, {colours}; values 0..255 are normalised: {how}\n'
        result += f'- output: logits, float32 [{number}, {card.num_classes}]; softmax makes probabilities'
        return f'{result}\n\n{made}'
    result = f'- input: uint8 {listed(card.size)}, {colours} in 0..255; the graph normalises them: {how}\n'
    result += f'- output: probabilities, float32 [{number}, {card.num_classes}]\n\n{made}'
    if choice['to'] == 'savedmodel':
        result += '\n\nSignatures: `predict_uint8` (this), `serving_default` and `predict` (the same in float32)'
        result += ', and, if it is there, `predict_bytes` (`image_bytes`: JPEG or PNG files, which it resizes itself).'
    return result


def _example(name, card, choice):
    """Return [the section of an example in Python], or [] if there is none for the format."""
    if choice['to'] != 'onnx' or choice['batch_size'] not in (None, 1) or card.resize == 'squash':
        return []
    (rows, columns), mode = card.size, 'RGB' if card.num_channels == 3 else 'L'
    opened = "Image.open('cat.jpg')"
    opened = f'ImageOps.exif_transpose({opened})' if card.uses_exif else opened
    method, lines = (
        card.interpolation.upper(),
        ['import numpy as np, onnxruntime', 'from PIL import Image, ImageOps', ''],
    )
    lines += [
        f'image = {opened}',
        "if image.mode.startswith('I'):  # 16 bits, which convert() would clip",
        '    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))',
        f"image = image.convert('{mode}')",
    ]
    if card.resize == 'cover':
        lines.append(f'image = ImageOps.fit(image, ({columns}, {rows}), Image.Resampling.{method})')
    else:
        lines += [
            f'width, height = ({card.resize} * side // min(image.size) for side in image.size)',
            f'left, top = round((width - {columns}) / 2), round((height - {rows}) / 2)',
            f'image = image.resize((width, height), Image.Resampling.{method})',
            f'image = image.crop((left, top, left + {columns}, top + {rows}))',
        ]
    lines.append(f'x = np.asarray(image).reshape(1, {rows}, {columns}, {card.num_channels})')
    if not choice['preprocessing']:
        lines += _normalizing(card)
    result = 'probabilities' if choice['preprocessing'] else 'logits'
    lines += [
        f'session = onnxruntime.InferenceSession({name!r})',
        f'{result} = session.run(None, {{session.get_inputs()[0].name: x}})[0][0]',
    ]
    if not choice['preprocessing']:
        lines += ['probabilities = np.exp(logits - logits.max())', 'probabilities /= probabilities.sum()']
    lines.append('best = probabilities.argmax()')
    if card.num_classes <= MAX_NAMES:
        lines += [f'names = {list(card.names)}', 'print(names[best], probabilities[best])']
    else:
        lines.append('print(best, probabilities[best])  # the names are below, in Labels')
    code = '\n'.join(lines)
    return [f'## Example\n\n```python\n{code}\n```']


def _normalizing(card):
    """Yield lines of Python that turn the pixels `x` into the input of the network."""
    if card.size != card.net_size:
        missing = [n - s for s, n in zip(card.size, card.net_size, strict=True)]
        around = ', '.join(f'({count // 2}, {count - count // 2})' for count in missing)
        yield f'x = np.pad(x, ((0, 0), {around}, (0, 0)))'
    if card.normalization.startswith('affine:'):
        _, order, scale, mean, std = card.normalization.split(':')
        pixels = 'x[..., ::-1]' if order == 'BGR' else 'x'
        yield f'x = (({pixels} * {scale} - np.array([{mean}])) / np.array([{std}])).astype(np.float32)'
    elif card.normalization == 'per_image_standardization':
        yield 'x = ((x - x.mean()) / max(x.std(), x.size**-0.5)).astype(np.float32)'
    else:
        yield f'x = x.astype(np.float32){" / 255" * (card.normalization == "unit_range")}'


def _labels(card):
    names = [re.sub(r'[^\w .,()-]|_', r'\\\g<0>', one_line(name)) for name in card.names]  # so that no name is Markdown
    return ', '.join(f'{i} {name}' for i, name in enumerate(names))


def _table(rows):
    return '\n'.join(['| | |', '|---|---|', *(f'| {name} | {value} |' for name, value in rows.items())])
