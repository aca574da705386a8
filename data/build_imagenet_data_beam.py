"""Build the shards of ILSVRC2012 by Apache Beam, on one machine or on a cluster: the bytes of build_imagenet_data.py.

    python data/build_imagenet_data_beam.py --train_tar=gs://BUCKET/ILSVRC2012_img_train.tar \\
        --validation_tar=gs://BUCKET/ILSVRC2012_img_val.tar --validation_labels_file=ILSVRC2012_devkit_t12.tar.gz \\
        --bounding_box_file=ILSVRC2012_bbox_train_v2.tar.gz --output_directory=gs://BUCKET/imagenet \\
        --runner=DataflowRunner --project=... --region=... --temp_location=gs://BUCKET/tmp

Every flag that is not listed below goes to Beam. Tar files and output may lie wherever Beam reads and writes (gs://,
s3://, hdfs://, a folder); pictures are read inside the tar files, by each worker those of its shards. The same command
continues what was stopped: shards that are finished stay. Needs `pip install '.[beam]'`; see data/README.md for
clusters.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
import uuid

import bounding_boxes
import imagenet_tars
import shard_job
import shards
import validation_labels
from absl import flags
from build_imagenet_data import read_labels, read_texts
from pictures import Pictures

from official_resnet.command_line import program
from official_resnet.errors import UserError

_PARTS = ('pictures.npy', 'pictures.json', 'options.json', 'box_names.npy', 'box_coordinates.npy')  # of a job
_CHUNK = 1 << 20  # bytes


class _Flags(flags.FlagValues):
    """Flags of this program; all others are kept for Beam."""

    def __call__(self, argv, known_only=False):
        rest = super().__call__(argv, known_only=True)
        self.__dict__['beam_arguments'] = rest[1:]
        return rest[:1]


def define_flags():
    """Return the flags, in a set of their own."""
    values = _Flags()
    values.set_gnu_getopt(True)  # Beam's flags stand anywhere
    for name, text in (
        ('train_tar', 'ILSVRC2012_img_train.tar.'),
        ('validation_tar', 'ILSVRC2012_img_val.tar.'),
        (
            'validation_labels_file',
            'imagenet_2012_validation_synset_labels.txt, ILSVRC2012_devkit_t12.tar.gz or ILSVRC2012_bbox_val_v3.tgz.',
        ),
        (
            'bounding_box_file',
            'ILSVRC2012_bbox_train_v2.tar.gz, or the CSV that bounding_boxes.py makes of it. '
            'Without it records have no boxes.',
        ),
        ('output_directory', 'Where shards go.'),
        (
            'labels_file',
            'Classes, one a line; the label of each is its place, from 1. Without it the 1000 of ILSVRC2012.',
        ),
        ('metadata_file', "Lines 'class TAB name'. Without it the names of ILSVRC2012's classes."),
    ):
        flags.DEFINE_string(name, None, text, flag_values=values)
    for name, default, lower, upper, text in (
        ('train_shards', 1024, 1, 99999, 'Files of training pictures.'),
        ('validation_shards', 128, 1, 99999, 'Files of validation pictures.'),
        ('seed', 12345, 0, None, 'Of the order of the pictures.'),
    ):
        flags.DEFINE_integer(name, default, text, lower, upper, flag_values=values)
    flags.DEFINE_enum(
        'check',
        'structure',
        ['structure', 'decode'],
        'How pictures are looked at: whole by their markers, or decoded.',
        flag_values=values,
    )
    flags.DEFINE_enum('on_broken', 'skip', ['skip', 'fail'], 'What to do about a broken picture.', flag_values=values)
    flags.DEFINE_boolean('allow_partial', False, 'Take tar files that lack classes or pictures.', flag_values=values)
    flags.register_validator('output_directory', bool, 'pass where the shards go', values)
    flags.register_multi_flags_validator(
        ['train_tar', 'validation_tar'], lambda v: any(v.values()), 'pass --train_tar, --validation_tar or both', values
    )
    flags.register_multi_flags_validator(
        ['validation_tar', 'validation_labels_file'],
        lambda v: bool(v['validation_tar']) == bool(v['validation_labels_file']),
        '--validation_tar and --validation_labels_file go together',
        values,
    )
    return values


def main(argv):
    """Run with the arguments `argv` (program name first); return the exit code."""
    return program.run_program(argv, __doc__, define_flags(), _run)


def _run(values):
    try:
        import apache_beam  # noqa: F401
    except ImportError:
        raise UserError(
            "apache_beam is not installed; run `pip install '.[beam]'` in the folder of the repository, or "
            'use build_imagenet_data.py, which does without'
        ) from None
    strangers = [argument for argument in values.beam_arguments if not argument.startswith('-')]
    if strangers and values.beam_arguments[0] == strangers[0]:
        raise UserError(f"unexpected argument '{strangers[0]}'; --help lists the flags")
    synsets, texts = read_labels(values.labels_file), read_texts(values.metadata_file)
    with tempfile.TemporaryDirectory() as temp_dir:
        for name in ('validation', 'train'):
            tar = getattr(values, f'{name}_tar')
            if tar:
                boxes = _boxes(values.bounding_box_file, temp_dir, synsets) if name == 'train' else None
                options = shards.Options(texts, boxes, values.seed, values.check, values.on_broken)
                job = BeamJob(
                    _absolute(values.output_directory), name, getattr(values, f'{name}_shards'), values.on_broken
                )
                pictures = _index(values, job, _absolute(tar), synsets, temp_dir)
                _build(job, pictures, options, values.beam_arguments, temp_dir)
    return 0


def _build(job, pictures, options, arguments, temp_dir):
    """Write all shards that are not there yet, then the manifest."""
    fingerprint = shards.fingerprint(pictures, options, job.num_shards)  # either builder knows what the other built
    manifest = job.read_json(job.manifest_path)
    for kept, where in ((manifest, job.manifest_path), (job.read_json(f'{job.folder}/job.json'), job.folder)):
        if kept and kept.get('fingerprint') != fingerprint:
            raise UserError(
                f"'{where}' is of a build of other pictures or options; give those again, or delete it and "
                f"'{job.output_dir}/{job.name}-*' to start over, or pass another --output_directory"
            )
    if manifest and all(job.size(entry['name']) == entry['bytes'] for entry in manifest['shards']):
        _log(
            f"{job.name} is complete, {manifest['records']} images in {job.num_shards} shards in '{job.output_dir}': "
            'nothing to do'
        )
        return
    local = pathlib.Path(temp_dir, job.name)  # has the pictures
    options.save(local)
    for part in _PARTS:
        job.upload(local / part, f'{job.folder}/{part}')
    job.write_json(f'{job.folder}/job.json', {'fingerprint': fingerprint, 'num_shards': job.num_shards})
    job.delete(f'{job.folder}/errors.json')
    _run_pipeline(job, fingerprint, arguments)
    errors, manifest = job.read_json(f'{job.folder}/errors.json'), job.read_json(job.manifest_path)
    if errors or not manifest:
        raise UserError(
            errors['errors'][0]
            if errors
            else f"'{job.manifest_path}' was not written; see what the runner says, and run the same command "
            'again, which continues'
        )
    _log(
        f'{job.name}: {manifest["bytes"] / 1e9:.3f} GB in {job.num_shards} shards; {len(manifest["reencoded"])} '
        f"pictures encoded anew, {len(manifest['broken'])} broken ones left out: '{job.manifest_path}' names them"
    )
    _log(f'Finished writing all {manifest["records"]} images in data set.')
    job.delete_folder()


def _run_pipeline(job, fingerprint, arguments):
    import apache_beam as beam
    import build_imagenet_data_beam as program  # what belongs to __main__ cannot be found by workers of their own
    from apache_beam.options.pipeline_options import PipelineOptions

    path = os.environ.get('PYTHONPATH')
    os.environ['PYTHONPATH'] = os.path.dirname(os.path.abspath(__file__)) + (f'{os.pathsep}{path}' if path else '')
    try:
        pipeline = beam.Pipeline(options=PipelineOptions(arguments))
    except ValueError as error:
        raise UserError(f'Beam refuses its flags {" ".join(arguments)}: {" ".join(str(error).split())}') from None
    with pipeline:
        _ = (
            pipeline
            | 'Shards' >> beam.Create(range(job.num_shards))
            | 'Spread' >> beam.Reshuffle()
            | 'Build' >> beam.Map(program.build_one, job, fingerprint)
            | 'Gather' >> beam.combiners.ToList()
            | 'Manifest' >> beam.Map(program.write_manifest, job, fingerprint)
        )


def build_one(shard, job, fingerprint):
    """Write a shard, unless that was done; return its summary, or {'error': message} of what a user can mend."""
    summary = job.read_json(f'{job.folder}/{job.shard_name(shard)}.json')
    if (
        summary
        and job.size(job.shard_name(shard)) == summary['bytes']
        and not (summary['broken'] and job.on_broken == 'fail')
    ):
        return summary
    pictures, options = _load(job, fingerprint)
    with contextlib.ExitStack() as stack:

        @functools.cache  # one handle a tar file, of this shard: other threads have theirs
        def open_once(path):
            return contextlib.nullcontext(stack.enter_context(_open(path)))

        part = f'{job.folder}/{job.shard_name(shard)}.{uuid.uuid4().hex}'  # a runner may build a shard twice at a time
        try:
            with _create(part) as file:
                summary = shards.build_shard(pictures, shard, job.num_shards, options, file, opener=open_once)
        except UserError as error:
            job.delete(part)
            return {'error': str(error)}
    job.rename(part, f'{job.output_dir}/{job.shard_name(shard)}')
    job.write_json(f'{job.folder}/{job.shard_name(shard)}.json', summary)
    return summary


def write_manifest(summaries, job, fingerprint):
    """Write the manifest, or errors.json if a shard could not be built."""
    errors = sorted(summary['error'] for summary in summaries if 'error' in summary)
    if errors:
        job.write_json(f'{job.folder}/errors.json', {'errors': errors})
        return
    pictures, options = _load(job, fingerprint)
    job.write_json(job.manifest_path, shards.manifest(job.name, job.num_shards, pictures, options, summaries))


@functools.lru_cache(maxsize=2)
def _load(job, fingerprint):
    """Return the Pictures and Options of a job, mapped from a copy on this machine's disk; once a process."""
    folder = tempfile.mkdtemp(prefix=f'{job.name}-{fingerprint[:8]}-')
    try:
        for part in _PARTS:
            _download(f'{job.folder}/{part}', f'{folder}/{part}')
        return Pictures.load(f'{folder}/pictures'), shards.Options.load(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # the maps stay


class BeamJob:
    """Where a build stands, on whatever file system Beam knows: the layout of shard_job.Job."""

    def __init__(self, output_dir, name, num_shards, on_broken='skip'):
        self.output_dir, self.name, self.num_shards = output_dir.rstrip('/'), name, num_shards
        self.on_broken = on_broken
        self.folder = f'{self.output_dir}/.{name}.progress'
        self.manifest_path = f'{self.output_dir}/{name}.manifest.json'

    def __eq__(self, other):
        return isinstance(other, BeamJob) and vars(self) == vars(other)

    def __hash__(self):
        return hash((self.output_dir, self.name, self.num_shards, self.on_broken))

    def shard_name(self, shard):
        """Return the name of a shard's file."""
        return shard_job.shard_name(self.name, shard, self.num_shards)

    def size(self, name):
        """Return the bytes of a file of the output, -1 if there is none."""
        found = _match(f'{self.output_dir}/{name}')
        return found.size_in_bytes if found else -1

    def read_json(self, path):
        """Return what write_json wrote, None if it is missing or damaged."""
        if not _match(path):
            return None
        try:
            with _open(path) as file:
                value = json.loads(file.read())
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    def write_json(self, path, value):
        """Write a file that is there whole or not at all."""
        part = f'{path}.{uuid.uuid4().hex}'
        with _create(part) as file:
            file.write(json.dumps(value, indent=1).encode())
        self.rename(part, path)

    def upload(self, source, path):
        """Copy a file of this machine."""
        with open(source, 'rb') as file, _create(path) as target:
            shutil.copyfileobj(file, target, _CHUNK)

    def rename(self, source, path):
        """Put a file in its place; HDFS does not replace one by itself."""
        self.delete(path)
        _filesystems().rename([source], [path])

    def delete(self, path):
        """Delete a file, if it is there."""
        if _match(path):
            _filesystems().delete([path])

    def delete_folder(self):
        """Delete the job's folder; where there are no folders, all that is named so."""
        filesystems = _filesystems()
        found = [file.path for file in filesystems.match([f'{self.folder}/*'])[0].metadata_list]
        if found:
            filesystems.delete(found)
        if filesystems.exists(self.folder):
            filesystems.delete([self.folder])


def _filesystems():
    from apache_beam.io.filesystems import FileSystems

    return FileSystems


def _open(path):
    from apache_beam.io.filesystem import CompressionTypes

    return _filesystems().open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def _create(path):
    from apache_beam.io.filesystem import CompressionTypes

    return _filesystems().create(path, compression_type=CompressionTypes.UNCOMPRESSED)


def _match(path):
    """Return the FileMetadata of a file, None if there is none."""
    found = _filesystems().match([path])[0].metadata_list
    return found[0] if found else None


def _absolute(path):
    return path if '://' in path else os.path.abspath(os.path.expanduser(path))


def _index(values, job, tar, synsets, temp_dir):
    """Return the Pictures of a tar file, from the job's folder if it was indexed for this build already."""
    found = _match(tar)
    if found is None:
        raise UserError(f"'{tar}' does not exist; pass the tar file to --{job.name}_tar")
    order = validation_labels.read(_local(values.validation_labels_file, temp_dir)) if job.name == 'validation' else []
    digest = hashlib.sha256(json.dumps([synsets, order, values.allow_partial]).encode()).hexdigest()
    source = {'path': tar, 'size': found.size_in_bytes, 'time': found.last_updated_in_seconds, 'labels': digest}
    kept, local = f'{job.output_dir}/.{job.name}.index', pathlib.Path(temp_dir, job.name)
    local.mkdir()
    parts = ('pictures.npy', 'pictures.json')
    if job.read_json(f'{kept}/source.json') == source:
        for part in parts:
            _download(f'{kept}/{part}', local / part)
        pictures = Pictures.load(local / 'pictures')
        _log(f"'{tar}' is indexed already: {len(pictures)} pictures")
        return pictures
    options = {'allow_partial': values.allow_partial, 'log': _log, 'opener': _open}
    if job.name == 'train':
        pictures = imagenet_tars.train_pictures(tar, synsets, **options)
    else:
        pictures = imagenet_tars.validation_pictures(tar, order, synsets, **options)
    pictures.save(local / 'pictures')
    job.delete(f'{kept}/source.json')
    for part in parts:
        job.upload(local / part, f'{kept}/{part}')
    job.write_json(f'{kept}/source.json', source)
    return pictures


def _boxes(path, temp_dir, synsets):
    """Return the Boxes of a CSV file, or of the tar file that such a one is made of; None without a path."""
    if path is None:
        return None
    path = _local(path, temp_dir)
    if path.endswith('.csv'):
        return shards.read_boxes(path)
    bounding_boxes.write(path, f'{temp_dir}/boxes.csv', synsets, _log)
    return shards.read_boxes(f'{temp_dir}/boxes.csv')


def _local(path, temp_dir):
    """Return the path of a file on this machine, copied there if it lies elsewhere."""
    if '://' not in path:
        return _absolute(path)
    target = os.path.join(temp_dir, path.rpartition('/')[2])
    _download(path, target)
    return target


def _download(path, target):
    with _open(path) as source, open(target, 'wb') as file:
        shutil.copyfileobj(source, file, _CHUNK)


def _log(line):
    print(line, flush=True)


if __name__ == '__main__':
    sys.exit(main(sys.argv))
