"""Turn ILSVRC2012's tar files into TFRecord shards with one command, which can be stopped and repeated.

    python data/download_and_preprocess_imagenet.py DATA_DIR

Put ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC2012_bbox_train_v2.tar.gz and one of
imagenet_2012_validation_synset_labels.txt, ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_bbox_val_v3.tgz into DATA_DIR or
DATA_DIR/raw-data. Missing files are downloaded if IMAGENET_USERNAME and IMAGENET_ACCESS_KEY are set. Files that you
already have need no account. Without the tar file of boxes, records have no boxes.

The program writes train-00000-of-01024 ... and validation-00000-of-00128 ... to DATA_DIR, 155 GB like
the tar files. It reads the images inside the tar files; --keep_extracted also unpacks them. data/README.md has more.
"""

import os
import pathlib
import sys

try:
    from absl.flags import FlagValues

    from official_resnet import files
    from official_resnet.building import boxes, downloads, image_list, job, labels, shards, tars
    from official_resnet.building.verify import verify
    from official_resnet.command_line import build_program, program
    from official_resnet.errors import UserError
except ModuleNotFoundError as error:  # run by its path without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")


STRINGS = {
    'data_dir': (None, 'Another way to pass DATA_DIR.'),
    'url': (downloads.URL, 'Address from which missing files are downloaded. A mirror needs no account, but gets it.'),
    **build_program.LISTS,
    'validation_labels_file': (None, 'Validation labels: one of the three files named above, or one like the first.'),
}
BOOLEANS = {
    'verify': (False, 'Read all shards back and check them.'),
    'verify_checksums': (True, 'Compare the MD5 of the big tar files once, if they have the official size.'),
    'allow_partial': (False, 'Accept tar files that lack classes or images, or only one of the two tar files.'),
    'keep_extracted': (False, 'Also unpack images to DATA_DIR/raw-data/train/<class> and .../validation.'),
}


def define_flags() -> FlagValues:
    """Return the flags of this program."""
    return build_program.define_flags(STRINGS, BOOLEANS, num_threads=8)


def main(argv: list[str]) -> int:
    """Run with the arguments `argv`, the program's name first; return the exit code."""
    return program.run_program(argv, __doc__, define_flags(), _run, takes_arguments=True)


def _run(values, arguments):
    log = build_program.log
    given = [argument for argument in (values.data_dir, *arguments) if argument]
    if len(given) != 1:
        raise UserError(f'unexpected argument {given[-1]!r}' if given else 'DATA_DIR is missing; pass a folder')
    data_dir = pathlib.Path(os.path.abspath(os.path.expanduser(given[0])))
    if data_dir.exists() and not data_dir.is_dir():
        raise UserError(f"DATA_DIR '{data_dir}' is a file; pass a folder")
    raw = data_dir / 'raw-data'
    files.make_folder(raw)
    synsets, texts = labels.read_classes(values.labels_file or None), labels.read_texts(values.metadata_file or None)
    num_shards = {name: values[f'{name}_shards'].value for name in ('train', 'validation')}
    plan = downloads.Plan(
        data_dir, num_shards, values.url, values.validation_labels_file, values.allow_partial, values.keep_extracted
    )
    paths = downloads.acquire(plan, log)
    plan.require_space(paths)
    if values.verify_checksums:
        for name, path in paths.items():
            downloads.check_md5(path, downloads.TARS[name], raw / '.checked.json', log)
    train_boxes = boxes.update_csv(plan.find(boxes.BOXES), raw, synsets, log)
    found = {}
    for name, path in paths.items():
        order = labels.read_validation(plan.find_labels()) if name == 'validation' else []
        made = job.Job(data_dir, name, plan.num_shards[name])
        found[name] = tars.kept_index(made, str(path), synsets, order, plan.allow_partial, log)
    for name, images in found.items():
        options = build_program.options(values, texts=texts, boxes=train_boxes if name == 'train' else boxes.NO_BOXES)
        shards.build(images, name, data_dir, plan.num_shards[name], values.num_threads, options=options, log=log)
    if values.keep_extracted:
        for name, images in found.items():
            image_list.extract(images, raw / name, log)
    if values.verify:
        return max(verify(data_dir, name, log) for name in plan.num_shards if name in found or plan.is_built(name))
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv))
