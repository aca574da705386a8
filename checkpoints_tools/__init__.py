"""Convert foreign checkpoints to verified Keras models. The command is read_ckpt.py; README.md describes it."""

_OF_TORCH = ('.pt', '.pth', '.th', '.tar', '.bin', '.safetensors', '.index.json')
# Family -> the endings of its files, which --source=auto tries first. The module is from_FAMILY.
FAMILIES = {
    'torch': _OF_TORCH,
    'timm_v2': _OF_TORCH,
    'transformers': _OF_TORCH,
    'pytorchcv': _OF_TORCH,
    'caffe': ('.caffemodel',),
    'tensorpack': ('.npz',),
    'keras_hub': ('.h5', '.keras'),  # before the next, whose files may also lack names of layers
    'keras_applications': ('.h5', '.hdf5', '.keras'),
    'slim': ('.ckpt', '.index'),
    'official_tf': ('.index',),
    'ry': ('.ckpt', '.index'),
    'wenxinxu': ('.index',),
}
# The families as which our networks can be written -> the suffix of the file.
TARGETS = {'torch': '.safetensors', 'keras_hub': '.keras'}
