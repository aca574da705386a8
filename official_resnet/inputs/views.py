"""Options that decide how an encoded image becomes a network's input. The functions that use them are in encoded."""

import dataclasses

from official_resnet import errors
from official_resnet.inputs.datasets import MAX_IMAGE_SIZE

RESIZES = ('tf1', 'antialias')
CROPS = ('tensorflow', 'torch')
_SIDE = {'least': 8, 'most': MAX_IMAGE_SIZE}  # bounds of an image's height and width in pixels


def _flag(default, text, **about):
    """Return a field that has a flag, see training.config.setting."""
    about = {'group': 'Data', 'streams': True, 'is_open': True, **about}
    return dataclasses.field(default=default, metadata={'text': text, **about})


@dataclasses.dataclass(frozen=True)
class Views:
    """How an encoded image of any size becomes the network's input. The defaults are official/resnet's.

    Attributes:
        test_resize: Pixels of the shorter side before evaluation crops. None keeps the ratio 256 : 224 to `test_size`.
        min_area: Least area of a training crop. arXiv:1409.4842 Sec. 6 has 0.08.
        use_boxes: If an image has no box, a crop contains at least a tenth of the image.
        resize: 'tf1' is TensorFlow 1's bilinear resize, aligned at the upper left corners and not antialiased. It uses
            the fast JPEG transform, TensorFlow's default. 'antialias' is the bilinear resize of Pillow, and so of
            torchvision, without their rounding to whole numbers. It uses the accurate JPEG transform.
        crop: What draws training crops. 'tensorflow' is sample_distorted_bounding_box, 'torch' is RandomResizedCrop of
            torchvision, whose crops are larger on average and which knows no boxes.
        uses_exif: Whether an image is turned as its EXIF says. None: the data set decides. ILSVRC2012 is not turned.
    """

    size: int = _flag(
        224, 'Height and width, in pixels, that training images are cropped and resized to.', flag='image_size', **_SIDE
    )
    test_size: int = _flag(
        224,
        'Height and width, in pixels, of the central crop in evaluation; the default is --image_size.',
        flag='eval_image_size',
        **_SIDE,
    )
    test_resize: int | None = None
    min_area: float = _flag(
        0.05, 'Least area of a training crop, as a fraction of the image.', flag='min_crop_area', least=0, most=1
    )
    use_boxes: bool = _flag(True, 'Training crops contain at least a tenth of a bounding box, if the image has one.')
    resize: str = _flag('tf1', "TensorFlow 1's bilinear resize, or Pillow's (torchvision).", words=RESIZES)
    crop: str = _flag(
        'tensorflow',
        "What draws training crops: TensorFlow's sample_distorted_bounding_box, or torchvision's RandomResizedCrop, "
        'which ignores boxes.',
        flag='crop_sampler',
        words=CROPS,
    )
    uses_exif: bool | None = None

    def __post_init__(self):
        for flag, word, words in (('resize', self.resize, RESIZES), ('crop_sampler', self.crop, CROPS)):
            if word not in words:
                raise errors.UserError(f'--{flag}={word} must be one of {", ".join(words)}')
        if self.crop == 'torch' and self.use_boxes:
            raise errors.UserError(
                '--crop_sampler=torch knows no boxes; pass --nouse_boxes, or --crop_sampler=tensorflow to use boxes'
            )
        for flag, size in (('image_size', self.size), ('eval_image_size', self.test_size)):
            if size < 1:
                raise errors.UserError(f'--{flag}={size} must be 1 or more')
        if not 0 < self.min_area <= 1:
            raise errors.UserError(f'--min_crop_area={self.min_area} must be above 0 and at most 1')
        if self.test_resize is not None and self.test_resize < self.test_size:
            fault = f'test_resize {self.test_resize} leaves fewer than {self.test_size} pixels to crop'
            raise errors.UserError(f'{fault}; pass {self.test_size} or more')

    def with_exif(self, is_own: bool) -> 'Views':
        """Return the same views for a data set, which are your own images or not."""
        return dataclasses.replace(self, uses_exif=is_own) if self.uses_exif is None else self

    @property
    def dct_method(self) -> str:
        """The argument `dct_method` of tf.io.decode_jpeg."""
        return 'INTEGER_ACCURATE' if self.resize == 'antialias' else 'INTEGER_FAST'

    @property
    def shorter_side(self) -> int:
        """Pixels to which evaluation resizes the shorter side."""
        return self.test_resize or round(self.test_size * 256 / 224)
