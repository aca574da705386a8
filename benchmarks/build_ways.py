"""What a process of benchmarks.build measures: the builder's way and upstream's with the images of a folder."""

import functools
import os

from benchmarks import machine
from benchmarks.machine import timed
from official_resnet.building import image_list, records, shards
from official_resnet.building.job import Job
from official_resnet.building.records import Options
from official_resnet.inputs.images import JPEG_SUFFIXES


def ours(folder: str, output: str, num_shards: int) -> dict[str, float]:
    """Do what a process of the builder does; return the seconds of the clock and of the core."""
    images, job, options = _images(folder), Job(output, 'train', num_shards), Options()
    os.makedirs(job.folder)
    return _measured(
        lambda shard: job.write_shard(shard, functools.partial(shards.build_shard, images, shard, num_shards, options)),
        num_shards,
    )


def upstream(folder: str, output: str, num_shards: int) -> dict[str, float]:
    """Write the same images into as many shards as upstream did; return the same."""
    os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
    import tensorflow as tf

    images, job = _images(folder), Job(output, 'train', num_shards)
    os.makedirs(output)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        source = tf.compat.v1.placeholder(tf.string)
        decoded = tf.io.decode_jpeg(source, channels=3)
        session.run(decoded, {source: images.read_bytes(0)})  # the first run builds things

        def write(shard):
            with tf.io.TFRecordWriter(job.shard_path(shard)) as writer:
                for i in shards.shard_rows(len(images), shard, num_shards, 12345).tolist():
                    data = images.read_bytes(i)
                    height, width, channels = session.run(decoded, {source: data}).shape
                    if channels != 3:
                        raise ValueError('not RGB')
                    writer.write(_example(tf, records.features(images, i, Options(), data, width, height)))

        return _measured(write, num_shards)


def memory(folder: str, output: str, num_shards: int, num_threads: int) -> list[int]:
    """Build the shards; return the peak memory in bytes of this process and of its largest child."""
    with machine.sampled(machine.largest_child, 0.05) as sizes:
        shards.build(_images(folder), 'train', output, num_shards, num_threads, log=lambda line: None)
    return [machine.memory('VmHWM'), max(sizes)]


def _images(folder):
    return image_list.from_folders(folder, sorted(os.listdir(folder)), JPEG_SUFFIXES)


def _measured(write, num_shards):
    _, seconds, cpu = timed(lambda: [write(shard) for shard in range(num_shards)])
    return {'seconds': seconds, 'cpu': cpu}


def _example(tf, features):
    example = tf.train.Example()
    for key, value in features.items():
        feature = example.features.feature[key]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        elif isinstance(value, int):
            feature.int64_list.value.append(value)
        else:
            (feature.int64_list if 'label' in key else feature.float_list).value.extend(value)
    return example.SerializeToString()
