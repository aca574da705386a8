"""Faults, one for each promise of this project, and the tests that must catch them.

    python tests/faults.py                    # apply each fault to a copy of the checkout and run its tests there
    python tests/faults.py label-smoothing    # only the faults named
    python tests/faults.py --baseline         # first make sure that the same tests pass without a fault
    python tests/faults.py --check            # only see that each fault still fits the code; no test runs; a second
    python tests/faults.py --list             # the faults and their promises

On two cores that other jobs used too, all faults took 6 minutes, and with --baseline 12 (n = 1).

A fault is caught if a test fails, or errs in its fixtures. An error of collection, or a test that fails because a name
or an import is wrong, says nothing about the promise, and does not count. When code moves, its faults move along: the
exact text of each must be in its file once, else the fault is stale. The exit code is 1 if any is stale or not caught.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
TIMEOUT = 1800  # seconds; the slowest takes about a minute on two quiet cores
_FAILED = re.compile(r'^(?:FAILED|ERROR) (\S+?::.*)$', re.MULTILINE)  # an error of collection has no '::'
_NO_PROOF = re.compile(r' - (?:SyntaxError|IndentationError|ImportError|ModuleNotFoundError|NameError)\b')


class Fault(NamedTuple):
    """A promise, and how it is broken."""

    name: str
    promise: str
    file: str  # below the root
    old: str  # stands in the file once
    new: str
    tests: str  # arguments for pytest, the test file first


FAULTS = [
    # The network and its layers.
    Fault(
        'v1.5-stride',
        'Version 1.5 has the stride of a bottleneck on its 3x3 convolution, version 1 on its first 1x1.',
        'official_resnet/resnet_spec.py',
        "spec.stride_conv or ('first' if spec.version == '1' else '3x3')",
        "spec.stride_conv or ('first' if spec.version != '2' else '3x3')",
        'tests/resnet_model_test.py -k where_a_bottleneck_strides',
    ),
    Fault(
        'option-a-zeros',
        'Option A adds its zero channels at the end.',
        'official_resnet/resnet_model.py',
        "num_zeros // 2 if spec.shortcut_padding == 'both' else 0",
        "num_zeros // 2 if spec.shortcut_padding == 'both' else num_zeros",
        'tests/resnet_model_test.py -k option_a',
    ),
    Fault(
        'v2-identity',
        'The identity of version 2 carries the block input as it is, not its pre-activation.',
        'official_resnet/resnet_model.py',
        'identity = x if in_channels == channels or ',
        'identity = x if ',
        'tests/resnet_model_test.py -k v2_has_no_bn',
    ),
    Fault(
        'symmetric-padding',
        'A strided convolution pads both sides alike, so that converted weights compute the same.',
        'official_resnet/resnet_model.py',
        "if spec.padding == 'symmetric' and stride > 1",
        "if spec.padding == 'symmetric' and stride > 2",
        'tests/checkpoints_tools/from_torch_test.py -k our_net_computes_the_same',
    ),
    Fault(
        'unbiased-variance',
        'The moving variance is the mean of biased variances, as in Keras.',
        'official_resnet/layers.py',
        'variance * (tf.maximum(count - 1, 1) / count)',
        'variance',
        'tests/layers_test.py -k "equals_stock_layer and training"',
    ),
    Fault(
        'frozen-bn',
        'Frozen batch normalisation uses and keeps its moving statistics in training.',
        'official_resnet/layers.py',
        'is_training = bool(training and self.trainable)',
        'is_training = bool(training)',
        'tests/layers_test.py -k "equals_stock_layer and frozen"',
    ),
    Fault(
        'folded-epsilon',
        'Batch normalisation is folded into a convolution with its epsilon.',
        'official_resnet/inference/rewrite.py',
        'np.sqrt(variance + norm.epsilon)',
        'np.sqrt(variance)',
        'tests/layers_test.py -k folded',
    ),
    # The optimizer and the loss.
    Fault(
        'decoupled-decay',
        'Weight decay is part of the gradient, and so of the momentum.',
        'official_resnet/training/optimizers.py',
        'gradient = gradient + l2 * tf.convert_to_tensor(variable)',
        'variable.assign(variable * (1 - learning_rate * l2))',
        'tests/training/optimizers_test.py -k update_with_a_drop',
    ),
    Fault(
        'schedule-boundary',
        'Boundaries of the learning rate are cut to whole steps, as in official/resnet.',
        'official_resnet/training/optimizers.py',
        'int(min(epoch * steps_per_epoch + 1e-6, 2**62))',
        'round(min(epoch * steps_per_epoch, 2**62))',
        'tests/training/optimizers_test.py -k official_boundaries',
    ),
    Fault(
        'label-smoothing',
        'Smoothed labels sum to 1: the true class keeps its share of what is spread.',
        'official_resnet/training/step.py',
        '1 - smoothing + smoothing / num_classes',
        '1 - smoothing',
        'tests/training/step_test.py -k stock_step',
    ),
    # The input.
    Fault(
        'evaluation-remainder',
        'Evaluation scores the last images too, fewer than a batch.',
        'official_resnet/inputs/in_memory.py',
        'return tf.data.Dataset.range(0, num_images, batch_size)',
        'return tf.data.Dataset.range(0, num_images - batch_size + 1, batch_size)',
        'tests/inputs/in_memory_test.py -k every_image_once_in_order',
    ),
    Fault(
        'augmentation-seed',
        'Augmentation depends on the seed.',
        'official_resnet/inputs/in_memory.py',
        'seeds, part = tf.stack([seed, step]), (first, batch_size)',
        'seeds, part = tf.stack([0 * seed, step]), (first, batch_size)',
        'tests/inputs/in_memory_test.py -k "depend_on_seed or gather_augment"',
    ),
    Fault(
        'epoch-order',
        'Each epoch has an order of its own.',
        'official_resnet/inputs/in_memory.py',
        'tf.stack([seed, -1 - epoch])',
        'tf.stack([seed, -1 - 0 * epoch])',
        'tests/inputs/in_memory_test.py -k no_image_comes_twice',
    ),
    Fault(
        'one-crop',
        'Each image of a batch is cropped at a place of its own.',
        'official_resnet/inputs/augmentation.py',
        'return crop_flip(images, tops, lefts, flips, pad, size)',
        'return crop_flip(images, 0 * tops + tops[0], 0 * lefts + lefts[0], flips, pad, size)',
        'tests/inputs/augmentation_test.py -k its_own_offsets',
    ),
    Fault(
        'digits-mirrored',
        'flip=False trains on images that are not mirrored, as the digits of MNIST.',
        'official_resnet/resnet_run_loop.py',
        'flip=self.config.flip,',
        'flip=True,',
        'tests/training/step_test.py -k its_config_describes',
    ),
    Fault(
        'label-off-by-one',
        'Labels of ImageNet shards, from 1, become classes from 0.',
        'official_resnet/inputs/shards.py',
        'return jpegs, labels - records.first_label, boxes',
        'return jpegs, labels, boxes',
        'tests/inputs/shards_test.py -k any_image',
    ),
    Fault(
        'cmyk',
        'The inks of a CMYK JPEG are inverted only where Adobe did so.',
        'official_resnet/inputs/images.py',
        "'adobe_transform' not in image.info:",
        "'adobe_transform' in image.info:",
        'tests/inputs/jpeg_test.py -k cmyk',
    ),
    Fault(
        'exif',
        'An image to be named is turned as its EXIF says.',
        'official_resnet/inputs/images.py',
        'PREDICTION = Rules(None, uses_exif=True)',
        'PREDICTION = Rules(None, uses_exif=False)',
        'tests/inputs/images_test.py -k exif',
    ),
    # The run and its state.
    Fault(
        'resume-order',
        'A run that is resumed inside an epoch goes on with the next batch of this epoch.',
        'official_resnet/inputs/in_memory.py',
        '.skip(steps_into_epoch)',
        '.skip(0 * steps_into_epoch)',
        'tests/resnet_run_loop_test.py -k killed_and_resumed',
    ),
    Fault(
        'checkpoint-in-place',
        'A checkpoint has its final name only when it is whole.',
        'official_resnet/files.py',
        "path.with_name(f'part.{path.name}'))",
        'path)',
        'tests/checkpoints_test.py -k kill_while_writing',
    ),
    Fault(
        'damaged-checkpoint',
        'A damaged checkpoint is passed over for the one before it.',
        'official_resnet/checkpoints.py',
        'reversed(found)',
        'found[-1:]',
        'tests/checkpoints_test.py -k passed_over',
    ),
    Fault(
        'signal-unsaved',
        'SIGTERM saves the state before the program ends.',
        'official_resnet/training/stopping.py',
        'path or trainer.save()',
        'path',
        'tests/resnet_run_loop_test.py -k signals_save',
    ),
    Fault(
        'clean-foreign-folder',
        '--clean refuses a folder that is no model_dir.',
        'official_resnet/training/same_run.py',
        "if not config_in(folder) and not checkpoints.paths(folder / 'checkpoints'):",
        'if not folder.is_dir():',
        'tests/resnet_run_loop_test.py -k other_wrong_input',
    ),
    Fault(
        'lock',
        'A model_dir has one job at a time.',
        'official_resnet/files.py',
        'fcntl.LOCK_EX | fcntl.LOCK_NB',
        'fcntl.LOCK_SH | fcntl.LOCK_NB',
        'tests/checkpoints_test.py -k one_job',
    ),
    # Several devices and workers.
    Fault(
        'worker-share',
        'Each worker has its own part of a batch.',
        'official_resnet/inputs/in_memory.py',
        'rows[:, share[0] * size : (share[0] + 1) * size]',
        'rows[:, :size]',
        'tests/training/distribution_test.py -m whole_runs -k share_each_batch',
    ),
    Fault(
        'fillers-counted',
        'What only fills the last batch of evaluation is not counted.',
        'official_resnet/training/step.py',
        'is_counted = labels >= 0',
        'is_counted = labels >= -1',
        'tests/training/step_test.py -k only_fills_a_batch',
    ),
    Fault(
        'replica-statistics',
        'All replicas hold the mean of their moving statistics.',
        'official_resnet/training/replicas.py',
        'moving.assign(tf.convert_to_tensor(moving) * momentum + batch * (1 - momentum))',
        'moving.assign(tf.convert_to_tensor(moving) * momentum + _ * (1 - momentum))',
        'tests/training/distribution_test.py -m whole_runs -k replicas_hold_the_same',
    ),
    Fault(
        'synchronized-variance',
        'Synchronized batch normalisation counts the variance between replicas.',
        'official_resnet/training/replicas.py',
        'variance += tf.maximum(square - tf.square(mean), 0)',
        'variance += 0 * tf.maximum(square - tf.square(mean), 0)',
        'tests/training/step_test.py -m whole_runs -k synchronized_bn',
    ),
    # Transfer and inference.
    Fault(
        'feature-key',
        'Cached features are computed anew for other weights.',
        'official_resnet/training/feature_cache.py',
        'digest.update(np.ascontiguousarray(variable.numpy()))',
        'pass',
        'tests/training/feature_cache_test.py -k computed_anew',
    ),
    Fault(
        'export-unchecked',
        'A SavedModel that computes something else is refused.',
        'official_resnet/inference/export.py',
        'if not difference <= TOLERANCE:',
        'if difference < 0:',
        'tests/inference/prediction_test.py -k differs_is_refused',
    ),
    Fault(
        'exported-file-unchecked',
        'A file of another runtime that computes something else is not written.',
        'official_resnet/inference/runtimes.py',
        'if not (self.difference <= most and self.agreement >= least):',
        'if self.difference < 0:',
        'tests/programs/export_main_test.py -k does_not_compute_the_same',
    ),
    Fault(
        'grad-cam-weights',
        'Grad-CAM weighs each map by the mean of its gradient.',
        'official_resnet/inference/grad_cam.py',
        'weights = tf.reduce_mean(tf.cast(tape.gradient(chosen, maps), tf.float32), [1, 2], keepdims=True)',
        'weights = tf.cast(tape.gradient(chosen, maps), tf.float32)',
        'tests/inference/grad_cam_test.py -k residual_net',
    ),
    # Files from elsewhere, and shards.
    Fault(
        'md5-unchecked',
        'A download with another MD5 than expected is refused.',
        'official_resnet/inputs/download.py',
        'if found[: len(expected) if kind else None] != expected:',
        'if not found:',
        'tests/inputs/download_test.py -k gets_no_name',
    ),
    Fault(
        'path-traversal',
        'An archive with a path to outside is refused.',
        'official_resnet/inputs/download.py',
        "name.anchor or '..' in name.parts or",
        'name.anchor or',
        'tests/inputs/download_test.py -k refused_and_leaves_nothing',
    ),
    Fault(
        'record-checksum',
        'A TFRecord whose data has another checksum is refused.',
        'official_resnet/inputs/tfrecords.py',
        'if rest[size : size + FOOTER_BYTES] != _masked_crc(data):',
        'if not rest[size : size + FOOTER_BYTES]:',
        'tests/inputs/shards_test.py -k damaged_record_is_named',
    ),
    Fault(
        'shard-in-place',
        'A shard has its final name only when it is whole.',
        'official_resnet/building/job.py',
        'with files.replacing(path, part=part) as part_path, open(part_path,',
        'with open(path,',
        'tests/building/building_shards_test.py -k no_room_on_the_disk',
    ),
    # Conversion.
    Fault(
        'kernel-transposed',
        "PyTorch's kernels are transposed to ours without exchanging height and width.",
        'checkpoints_tools/our_net.py',
        'np.transpose(kernel, (2, 3, 1, 0))',
        'np.transpose(kernel, (3, 2, 1, 0))',
        'tests/checkpoints_tools/from_torch_test.py -k our_net_computes_the_same',
    ),
    Fault(
        'conversion-unverified',
        'A converted net that computes something else is not written.',
        'checkpoints_tools/verify.py',
        'if relative > tolerance:',
        'if relative < 0:',
        'tests/checkpoints_tools/convert_test.py -k computes_something_else',
    ),
    Fault(
        'pickle-global',
        'A pickle that asks for a function is refused.',
        'checkpoints_tools/torch_pickle.py',
        'if (module, name) not in _FUNCTIONS:',
        "if (module, name) not in _FUNCTIONS and module not in ('os', 'builtins'):",
        'tests/checkpoints_tools/torch_pickle_test.py -k would_run_code',
    ),
    # Commands.
    Fault(
        'exit-code-of-a-signal',
        'A program that a signal ended exits with 128 and its number.',
        'official_resnet/command_line/failures.py',
        'return 128 + error.signal_number',
        'return 1',
        'tests/programs/imagenet_main_test.py -m whole_runs -k killed_and_resumed',
    ),
    Fault(
        'slow-help',
        '--help answers at once, without TensorFlow.',
        'official_resnet/command_line/flags.py',
        'import os\n',
        'import os\nimport keras  # noqa\n',
        'tests/architecture_test.py -k imports_nothing',
    ),
]


def stale(fault, root=ROOT):
    """Return why a fault does not fit the code any more, '' if it does."""
    path, test = root / fault.file, shlex.split(fault.tests)[0]
    if not path.is_file():
        return f'there is no {fault.file}'
    if not (root / test).is_file():
        return f'there is no {test}'
    source = path.read_text(encoding='utf-8')
    if source.count(fault.old) != 1:
        return f'{fault.file} has its text {source.count(fault.old)} times, not once'
    try:
        compile(source.replace(fault.old, fault.new), fault.file, 'exec')
    except SyntaxError as error:
        return f'{fault.file} is no Python with it ({error})'
    return ''


def run(tests, fault=None):
    """Run tests on a copy of the checkout, with a fault; return (whether one failed, what happened)."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix='fault-') as folder:
        root = pathlib.Path(folder)
        for name in subprocess.check_output(['git', 'ls-files', '-z'], cwd=ROOT, text=True).split('\0')[:-1]:
            if (ROOT / name).is_file():  # not deleted since
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, root / name)
        if fault:
            path = root / fault.file
            path.write_text(path.read_text(encoding='utf-8').replace(fault.old, fault.new), encoding='utf-8')
        code, output = _pytest(root, tests)
    failed = [line for line in _FAILED.findall(output) if not _NO_PROOF.search(line)]
    if code == 1 and failed:
        return True, f'{failed[0][:160]} ({time.monotonic() - begin:.0f} s)'
    if code == 0:
        return False, f'all pass ({time.monotonic() - begin:.0f} s)'
    lines = [line for line in output.splitlines() if line.strip()]
    return False, f'pytest ended with {code}: {" | ".join(lines[-3:])[:300]}'


def _pytest(root, tests):
    """Return (exit code, output) of pytest; it and what it started are ended after TIMEOUT."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'pytest', '-q', '-x', '--tb=line', '-p', 'no:cacheprovider', *shlex.split(tests)],
        cwd=root,
        env=os.environ | {'PYTHONPATH': str(root), 'COLUMNS': '200'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
        return process.returncode, output
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            return None, f'no end after {TIMEOUT} s'
        raise


def _baseline(tests):
    has_failed, text = run(tests)
    return not has_failed and text.startswith('all pass'), text


def main(arguments):
    """Run with command-line arguments; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', help='faults, all without')
    parser.add_argument('--list', action='store_true', help='print the faults and their promises')
    parser.add_argument('--check', action='store_true', help='only see that each fault fits the code')
    parser.add_argument('--baseline', action='store_true', help='see first that the tests pass without faults')
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='test runs at a time, 1')
    options = parser.parse_args(arguments)
    unknown = set(options.names) - {fault.name for fault in FAULTS}
    if unknown or options.jobs < 1:
        parser.error(f'no fault {", ".join(sorted(unknown))}; --list has all' if unknown else '--jobs begins with 1')
    faults = [fault for fault in FAULTS if fault.name in options.names or not options.names]
    if options.list:
        for fault in faults:
            print(f'{fault.name:22} {fault.promise}\n{"":22} {fault.file}; {fault.tests}')
        return 0
    num_bad, fitting = 0, []
    for fault in faults:
        reason = stale(fault)
        num_bad += bool(reason)
        if reason:
            print(f'{fault.name:22} STALE: {reason}', flush=True)
        else:
            fitting.append(fault)
    if options.check:
        print(f'{len(fitting)} of {len(faults)} faults fit the code')
        return int(num_bad > 0)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        if options.baseline:
            selections = list(dict.fromkeys(fault.tests for fault in fitting))
            for tests, (is_good, text) in zip(selections, pool.map(_baseline, selections), strict=True):
                num_bad += not is_good
                print(f'{"without a fault":22} {"passes" if is_good else "FAILS"}: {tests}: {text}', flush=True)
        num_caught = 0
        for fault, (is_caught, text) in zip(fitting, pool.map(lambda f: run(f.tests, f), fitting), strict=True):
            num_caught += is_caught
            print(f'{fault.name:22} {"caught" if is_caught else "NOT CAUGHT"}: {text}', flush=True)
    print(f'{num_caught} of {len(faults)} faults caught')
    return int(num_bad > 0 or num_caught < len(faults))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
