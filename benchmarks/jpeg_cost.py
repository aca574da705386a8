"""What JPEG costs: train on CIFAR-10 images that were stored as JPEG, and score held-out ones as JPEG and lossless.

    python -m benchmarks.jpeg_cost --archive=cifar10-jpeg.tar.xz --lossless=cifar10-first4000-lossless.npz \\
        --output_dir=OUT --recipe=fast

The archive has the 50,000 + 10,000 images of CIFAR-10 as files SPLIT/CLASS/NUMBER.jpg. The .npz has some of the
training images as they were before, `images` uint8 [n, 32, 32, 3] and `labels`, and `jpeg`, the names of the same
images in the archive. These n are held out: the recipe trains on the other training images, and then the network is
scored on the n in both forms. The figures are no test accuracy. If the command is stopped, run it again to continue.
"""

import dataclasses
import io
import pathlib
import sys
import tarfile

import numpy as np
from absl import flags as absl_flags
from PIL import Image

from benchmarks import measuring, time_to_accuracy
from official_resnet import files
from official_resnet.command_line import program
from official_resnet.command_line.definer import Definer
from official_resnet.errors import UserError
from official_resnet.inputs import cifar

PER_FILE = 10_000  # records in each of the files of CIFAR-10's binary format


def define_flags() -> absl_flags.FlagValues:
    """Return the flags of this program: those of time_to_accuracy, and the two files."""
    values = time_to_accuracy.define_flags()
    define = Definer(values)
    define.string('archive', None, 'The tar file of JPEG images.')
    define.string('lossless', None, 'The .npz of the same images without JPEG, which are held out.')
    return values


def write_data(archive: str, held_out: list[str], folder: pathlib.Path) -> np.ndarray:
    """Write the images of an archive in CIFAR-10's binary format, and return the held-out ones, uint8 [n, 32, 32, 3].

    The images that are not held out come first, in an order by chance; the others are the last of the training split.
    """
    records: dict[str, dict[str, np.ndarray]] = {'train': {}, 'test': {}}
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name.endswith('.jpg'):
                split, class_name, name = member.name.split('/')[-3:]
                pixels = np.asarray(Image.open(io.BytesIO(tar.extractfile(member).read())))  # type: ignore[union-attr]
                planes = pixels.transpose(2, 0, 1).reshape(cifar.IMAGE_BYTES)  # [32, 32, 3] -> the file's planes
                records[split][f'{split}/{class_name}/{name}'] = planes
    classes = sorted({name.split('/')[1] for name in records['train']})
    missing = [name for name in held_out if name not in records['train']]
    if missing:
        raise UserError(f'{archive} has no {missing[0]}, which --lossless names; pass the archive that belongs to it')
    kept = [name for name in records['train'] if name not in set(held_out)]
    random = np.random.default_rng(0)
    order = {'train': [kept[i] for i in random.permutation(len(kept))] + held_out}
    order['test'] = [list(records['test'])[i] for i in random.permutation(len(records['test']))]
    for split, names in order.items():
        rows = [bytes([classes.index(name.split('/')[1])]) + records[split][name].tobytes() for name in names]
        for i in range(0, len(rows), PER_FILE):
            path = folder / (f'data_batch_{i // PER_FILE + 1}.bin' if split == 'train' else 'test_batch.bin')
            with files.replacing(path) as part:
                part.write_bytes(b''.join(rows[i : i + PER_FILE]))
    return np.stack([records['train'][name].reshape(3, 32, 32).transpose(1, 2, 0) for name in held_out])


def score(model_dir: str, images: np.ndarray, labels: np.ndarray, test_views: str) -> float:
    """Return the share of images, uint8 [n, h, w, c], that the network of a run classifies rightly."""
    import tensorflow as tf

    import official_resnet
    from official_resnet.inference import view_average
    from official_resnet.inputs.normalization import NORMALIZATIONS

    model, card = official_resnet.load(model_dir)
    logits = tf.function(lambda batch: view_average.logits_of(model, batch, test_views))
    batches = np.array_split(images, -(-len(images) // 500))
    found = [np.asarray(logits(NORMALIZATIONS[card.normalization](batch))).argmax(1) for batch in batches]
    return float((np.concatenate(found) == labels).mean())


def measure(values: absl_flags.FlagValues) -> None:
    """Train what the flags ask for, and print the two shares for each run."""
    output = measuring.check_output(values.output_json)
    for name in ('archive', 'lossless', 'output_dir'):
        if not values[name].value:
            raise UserError(f'--{name} is missing; pass its path')
    with np.load(values.lossless) as stored:
        lossless, labels, names = stored['images'], stored['labels'], stored['jpeg'].tolist()
    folder = pathlib.Path(values.output_dir).expanduser()
    data = folder / 'data' / 'cifar-10-batches-bin'
    files.make_folder(data)
    as_jpeg = write_data(values.archive, names, data)
    values['data_dir'].value = str(folder / 'data')
    results: list[dict] = []
    for recipe in values.recipe:
        config = time_to_accuracy.config_of(values, values.program, recipe)
        config = dataclasses.replace(config, num_train_images=5 * PER_FILE - len(names))
        found = time_to_accuracy.measure(config, recipe, time_to_accuracy.seeds_of(values), str(folder))
        for run in found['runs']:
            model_dir = str(folder / recipe / 'runs' / f'seed_{run["seed"]}')
            shares = [score(model_dir, images, labels, config.test_views) for images in (as_jpeg, lossless)]
            row = {'recipe': recipe, 'seed': run['seed'], 'jpeg': shares[0], 'lossless': shares[1]}
            results.append(row | {'test': run['accuracy']})
            print(
                f'{recipe}, seed {run["seed"]}: {shares[0]:.2%} of the {len(names)} held-out images as JPEG, '
                f'{shares[1]:.2%} lossless; test (JPEG) {run["accuracy"]:.2%}',
                flush=True,
            )
    if output:
        files.write_json(output, {'machine': measuring.describe(), 'results': results})


if __name__ == '__main__':
    sys.exit(program.run_program(sys.argv, __doc__, define_flags(), measure))
