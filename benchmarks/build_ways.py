"""What benchmarks.build measures in separate processes: our builder and upstream's, on the images of a folder."""

import functools
import os

from benchmarks import measuring
from official_resnet.building import image_list, records, shards
from official_resnet.building.job import Job
from official_resnet.building.records import Options
from official_resnet.inputs.images import JPEG_SUFFIXES


def ours(folder: str, output: str, num_shards: int) -> tuple[float, float]:
    """Build the shards as a process of our builder does; return the wall-clock and CPU seconds."""
    images, job, options = _images(folder), Job(output, 'train', num_shards), Options()
    os.makedirs(job.folder)

    def write(shard) -> None:
        job.write_shard(shard, functools.partial(shards.build_shard, images, shard, num_shards, options))

    return measuring.timed(lambda: list(map(write, range(num_shards))))[1:]


def upstream(folder: str, output: str, num_shards: int) -> tuple[float, float]:
    """Build the same shards as upstream did; return the wall-clock and CPU seconds."""
    os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
    import tensorflow as tf

    images, job = _images(folder), Job(output, 'train', num_shards)
    os.makedirs(output)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        source = tf.compat.v1.placeholder(tf.string)
        decoded = tf.io.decode_jpeg(source, channels=3)
        session.run(decoded, {source: images.read_bytes(0)})  # the first run is slow, so it does not count

        def write(shard) -> None:
            with tf.io.TFRecordWriter(job.shard_path(shard)) as writer:
                for i in shards.shard_rows(len(images), shard, num_shards, 12345).tolist():
                    data = images.read_bytes(i)
                    height, width, channels = session.run(decoded, {source: data}).shape
                    if channels != 3:
                        raise ValueError('not RGB')
                    writer.write(_example(tf, records.features(images, i, Options(), data, width, height)))

        return measuring.timed(lambda: list(map(write, range(num_shards))))[1:]


def memory(folder: str, output: str, num_shards: int, num_threads: int) -> list[int]:
    """Build the shards; return the peak memory in bytes of this process and of its largest child."""
    with measuring.sampled(measuring.largest_child, 0.05) as sizes:
        shards.build(_images(folder), 'train', output, num_shards, num_threads, log=lambda line: None)
    return [measuring.memory('VmHWM'), max(sizes)]


def _images(folder):
    return image_list.from_folders(folder, sorted(os.listdir(folder)), JPEG_SUFFIXES)


def _example(tf, features):
    example = tf.train.Example()
    for key, value in features.items():
        values = [value] if isinstance(value, (bytes, int)) else value
        other = 'float_list' if key.endswith(('min', 'max')) else 'int64_list'
        kind = 'bytes_list' if isinstance(value, bytes) else other
        getattr(example.features.feature[key], kind).value.extend(values)
    return example.SerializeToString()
