"""The records of a shard, which have the features of the Inception pipeline. official/resnet reads them.

Source: github.com/tensorflow/models, research/inception.
"""

import dataclasses
import hashlib
import json
import os
import pathlib

import numpy as np

from official_resnet import files
from official_resnet.building.boxes import NO_BOXES, Boxes
from official_resnet.building.image_list import ImageList
from official_resnet.building.sealed import seal, unseal
from official_resnet.inputs.images import FOLDER, SHARDS, Rules

IMAGENET_KEYS = frozenset(
    """
    image/encoded image/format image/colorspace image/channels image/height image/width image/filename
    image/class/label image/class/text image/class/synset image/object/bbox/xmin image/object/bbox/ymin
    image/object/bbox/xmax image/object/bbox/ymax image/object/bbox/label""".split()
)
FOLDER_KEYS = frozenset(key for key in IMAGENET_KEYS if 'bbox' not in key and 'synset' not in key)
KEYS = {'imagenet': IMAGENET_KEYS, 'folder': FOLDER_KEYS}  # by layout


@dataclasses.dataclass(frozen=True, eq=False)
class Options:
    """The settings that decide the records, besides the images."""

    texts: dict[str, str] = dataclasses.field(default_factory=dict)  # class -> its name in words
    boxes: Boxes = NO_BOXES
    seed: int = 12345  # of the order of the images; upstream's default
    check: str = 'structure'  # or 'decode', see images.to_rgb_jpeg
    on_broken: str = 'skip'  # or 'fail'
    layout: str = 'imagenet'  # or 'folder', your own images, without synset and boxes

    @property
    def rules(self) -> Rules:
        """How images are decoded: your own images are turned as EXIF says, ILSVRC2012 stays as it was published."""
        return FOLDER if self.layout == 'folder' else SHARDS

    def save(self, path: str | os.PathLike) -> None:
        """Write the boxes to `<path>.names.npy` and `<path>.coordinates.npy`, and the rest to `<path>.json`."""
        plain = {field: getattr(self, field) for field in ('texts', 'seed', 'check', 'on_broken', 'layout')}
        files.write_text(f'{path}.json', json.dumps(seal(plain)))
        for name, array in self.boxes._asdict().items():
            with files.replacing(f'{path}.{name}.npy') as part, open(part, 'wb') as file:
                np.save(file, array)

    @classmethod
    def load(cls, path: str | os.PathLike) -> 'Options':
        """Return what `save` wrote. The boxes are mapped into memory. A damaged one raises any Exception."""
        boxes = Boxes(*(np.asarray(np.load(f'{path}.{part}.npy', mmap_mode='r')) for part in Boxes._fields))
        return cls(boxes=boxes, **unseal(json.loads(pathlib.Path(f'{path}.json').read_text())))

    def digest(self) -> str:
        """Return a SHA-256 of the options that decide the bytes of shards, which on_broken does not."""
        digest = hashlib.sha256(json.dumps([self.texts, self.seed, self.check, self.layout], sort_keys=True).encode())
        for array in self.boxes:
            digest.update(array.tobytes())
        return digest.hexdigest()


def features(images: ImageList, i: int, options: Options, encoded: bytes, width: int, height: int) -> dict:
    """Return the features of image i, whose RGB JPEG is `encoded`, for tfrecords.encode_example."""
    label, synset, basename = images.label(i), images.synset(i), images.basename(i)
    is_own = options.layout == 'folder'
    text = options.texts.get(synset, synset if is_own else '')
    result = {
        'image/encoded': encoded,
        'image/format': b'JPEG',
        'image/colorspace': b'RGB',
        'image/channels': 3,
        'image/height': height,
        'image/width': width,
        'image/filename': os.fsencode(basename),
        'image/class/label': label,  # from 1; 0 is the background
        'image/class/text': text.encode(errors='surrogateescape'),
    }
    if is_own:
        return result
    boxes = options.boxes.for_image(basename)
    result['image/class/synset'] = synset.encode()
    for side, values in zip(('xmin', 'ymin', 'xmax', 'ymax'), boxes.T, strict=True):
        result[f'image/object/bbox/{side}'] = values
    result['image/object/bbox/label'] = np.full(len(boxes), label, np.int64)
    return result
