"""Foreign checkpoints in, Keras models out, verified: see README.md; read_ckpt.py is the command."""

# Family -> endings of its files, by which `auto` begins; the module is from_FAMILY.
FAMILIES = {
    'torch': ('.pt', '.pth', '.th', '.tar', '.bin', '.safetensors'),
    'caffe': ('.caffemodel',),
    'tensorpack': ('.npz',),
    'keras_applications': ('.h5', '.hdf5', '.keras'),
    'slim': ('.ckpt', '.index'),
    'official_tf': ('.index',),
}
