"""Train a residual network on ImageNet (ILSVRC2012), or on your own images of any size.

    python imagenet_main.py --data_dir ~/imagenet-data -bs 256           # ResNet-50 as official/resnet trained it
    python imagenet_main.py --data_dir ~/imagenet-data --recipe=fast     # 16 epochs at 160 pixels
    python imagenet_main.py --image_folder ~/images -rs 18               # a subfolder for each class
    python imagenet_main.py --tfds=imagenet2012 --data_dir ~/tensorflow_datasets
    python imagenet_main.py --eval_only --data_dir ~/imagenet-data \\
        --pretrained_model_checkpoint_path net.keras

This project has not yet run any recipe on the whole of ImageNet.

data_dir holds TFRecord shards, train-00000-of-01024 ... and validation-00000-of-00128 ... or another number of them.
data/download_and_preprocess_imagenet.py builds them. Images are streamed from the disk.
If a run is stopped or killed, run the same command again to continue at the same step, with the same images.
Recipes: official (default), fb, fast; short ones: ffcv_16, ffcv_40, ffcv_88, mosaic_mild, mosaic_medium; the most
accurate: a3, a2, a1, torchvision_v2 (docs/imagenet.md). Flags that you pass override the recipe.
"""

import sys

try:
    from official_resnet import resnet_variants
    from official_resnet.command_line.train_program import Program, entry
    from official_resnet.training.recipes_imagenet import FINE_TUNE, IMAGENET
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")

PROGRAM = Program(
    {'imagenet': IMAGENET},
    resnet_variants.imagenet_spec,
    sizes=', '.join(map(str, resnet_variants.IMAGENET_BLOCKS)),
    versions=('1', '1.5', '2'),
    streams=True,
    synthetic='synthetic224',
    fine_tune=FINE_TUNE,
)
run = entry(__doc__, PROGRAM)

if __name__ == '__main__':
    run()
