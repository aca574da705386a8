"""The table of bounds: what a reader takes at most of a file, an archive, a message or a server before it gives up.

Files and servers declare their own sizes, and may lie. So a reader asks `limit`, or calls `require`, before it reads,
writes or allocates as much. Each row has its case in tests/bounds_test.py.
"""

from typing import NamedTuple

from official_resnet.errors import UserError


class Bound(NamedTuple):
    """A row of the table."""

    value: int
    unit: str  # what is counted: bytes, pixels, members, seconds, bytes per second, ...
    what: str  # what is bounded
    why: str  # this number


BOUNDS = {
    'idx_bytes': Bound(1 << 30, 'bytes', 'the values of an IDX file', 'EMNIST, the largest known, has 547 million'),
    'image_pixels': Bound(1 << 27, 'pixels', 'an image', '0.5 GB as Pillow decodes it'),
    'image_side': Bound(65_535, 'pixels a side', 'an image', 'no JPEG has more; resizing 1 x 178 million took 3.6 GB'),
    'image_bytes': Bound(1 << 30, 'bytes', 'the file of an image', 'those pixels, of 8 bytes each'),
    'record_bytes': Bound(1 << 30, 'bytes', 'a record of a TFRecord file', 'it has one image'),
    'text_bytes': Bound(1 << 28, 'bytes', 'a text, such as labels, names or a manifest', 'ILSVRC2012 has 0.5 MB'),
    'json_bytes': Bound(1 << 26, 'bytes', 'a card, or the layers of a network', "ResNet-1202's have 4 million"),
    'keras_inflation': Bound(16, 'times its size', 'what a .keras file declares to hold', 'Keras compresses nothing'),
    'network_layers': Bound(10_000, 'layers with weights', 'a network', 'as of --resnet_size'),
    'keras_layers': Bound(40_000, 'calls of layers', 'the network of a .keras file', '10,000 layers with weights'),
    'layer_outputs': Bound(1 << 28, 'values', "a layer's output for an image", 'ResNets have 2**26 at 1024 pixels'),
    'network_weights': Bound(1 << 32, 'weights', 'the network of a card', 'BiT-R152x4 has 0.9 billion, 1912.11370'),
    'flag_files': Bound(100, 'flag files', 'the files of --flagfile, and those they name', 'few people have two'),
    'pickle_bytes': Bound(8 << 20, 'bytes', "a PyTorch file's pickle", 'that of ResNet-152 has 150 kB'),
    'pickle_instructions': Bound(1_000_000, 'instructions', "a PyTorch file's pickle", 'ResNet-152 has 30,000'),
    'pickle_dicts': Bound(10_000, 'dicts', "a PyTorch file's, searched for weights", 'Adam has one for each weight'),
    'pickle_depth': Bound(5, 'dicts in one another', "a PyTorch file's, searched for weights", '{ema: weights} has 2'),
    'torch_shards': Bound(100, 'shards', 'an index of PyTorch files', 'Hugging Face fills shards of 5 GB or more'),
    'caffe_fields': Bound(100_000, 'fields', 'a .caffemodel', 'ResNet-152 has about 30,000'),
    'npz_members': Bound(20_000, 'arrays', "tensorpack's .npz", 'ResNet-152 has 777'),
    'npz_inflation': Bound(8, 'times its size', "what tensorpack's .npz declares to hold", 'weights shrink by a tenth'),
    'hdf5_objects': Bound(20_000, 'objects', "Keras' HDF5 file", "ResNet152V2 with Adam's slots has about 6,000"),
    'hdf5_depth': Bound(12, 'nested groups', "Keras' HDF5 file", 'layers/conv2d/vars/0 has 3'),
    'hdf5_name': Bound(200, 'characters', "a name in Keras' HDF5 file", 'conv4_block36_preact_bn has 23'),
    'hdf5_memory': Bound(4 << 30, 'bytes', "the process that lists Keras' HDF5 file", 'the libraries take much of it'),
    'hdf5_seconds': Bound(60, 'seconds', "the listing of Keras' HDF5 file", 'damaged bytes make the library loop'),
    'gzip_header_bytes': Bound(1 << 16, 'bytes', 'a name or a comment in a gzip file', 'names have under 4 kB'),
    'tar_header_bytes': Bound(1 << 20, 'bytes', 'a long name or a pax record in a tar file', 'names have under 4 kB'),
    'meeting_bytes': Bound(1 << 16, 'bytes', 'a line between the workers and the chief', 'ours have 500'),
    'meeting_callers': Bound(64, 'connections', 'callers who have not said who they are', 'workers say it at once'),
    'meeting_seconds': Bound(600, 'seconds', 'the wait for the last worker', 'schedulers start a job within minutes'),
    'download_bytes': Bound(1 << 38, 'bytes', 'a download whose size is not known', 'ILSVRC2012 has a file of 148 GB'),
    'kit_bytes': Bound(1 << 30, 'bytes', "a download of ILSVRC2012's devkit or boxes", 'they have about 20 MB'),
    'least_speed': Bound(1000, 'bytes per second', 'the lowest speed of a download', 'at it, CIFAR-10 takes two days'),
    'slow_seconds': Bound(60, 'seconds', 'the time over which a speed is measured', 'networks pause'),
    'silence_seconds': Bound(30, 'seconds', 'the wait for a byte', 'networks pause'),
    'noise_bytes': Bound(1 << 20, 'bytes', 'what a server sends beyond ten times the file', 'headers have 10 kB'),
    'weights_bytes': Bound(
        1 << 33, 'bytes', 'published weights, or an archive of them, unpacked', 'ResNeXt-101 32x48d has 3.3 GB'
    ),
    'archive_rest_bytes': Bound(1 << 26, 'bytes', 'what an archive has beyond its files', 'CIFAR-10 has 10 kB'),
    'archive_members': Bound(1000, 'members', "a data set's archive", 'CIFAR-10 has 9'),
    'tar_members': Bound(2_000_000, 'members', 'each other tar file', 'ILSVRC2012 has 544,546 XML files in one'),
    'unpacked_bytes': Bound(1 << 32, 'bytes', 'a tar file of boxes or labels, unpacked', 'ILSVRC2012 has 0.9 GB'),
    'file_name_bytes': Bound(255, 'bytes', "an image's name in a tar file", 'file systems allow no more'),
    'xml_bytes': Bound(1 << 20, 'bytes', 'an XML file of boxes', "ILSVRC2012's have 1,000"),
    'kit_file_bytes': Bound(1 << 24, 'bytes', 'a file of the devkit', 'its 50,000 labels have about 200 kB'),
}


def limit(name: str) -> int:
    """Return the value of a row."""
    return BOUNDS[name].value


def require(name: str, amount: int, what: str, remedy: str) -> None:
    """Raise UserError if an amount is above a row's value.

    Args:
        name: The row.
        amount: How much a file declares or has, in the row's unit.
        what: What the message calls its bearer, for example "'/tmp/x.tar'".
        remedy: What the user can do.
    """
    if amount > limit(name):
        raise UserError(f'{what} has {amount} {BOUNDS[name].unit}, more than the {limit(name)} that are read; {remedy}')


def _print_table(values):
    print(f'{"row":20} {"limit":>15} unit: what it bounds (why this number)')
    for name, row in BOUNDS.items():
        print(f'{name:20} {row.value:>15,} {row.unit}: {row.what} ({row.why})')


if __name__ == '__main__':
    import sys

    from absl import flags

    from official_resnet.command_line import program

    show = program.reader_may_leave()(_print_table)
    sys.exit(program.run_program(sys.argv, __doc__, flags.FlagValues(), show))
