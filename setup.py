"""Install with `pip install .`; docs/index.md describes the extras."""

import pathlib
import re

from setuptools import find_packages, setup

# The one place of the version. Importing the package would need what is about to be installed.
INIT = pathlib.Path(__file__).with_name('official_resnet') / '__init__.py'
VERSION = re.search(r"^__version__ = '(.+)'$", INIT.read_text(encoding='utf-8'), re.MULTILINE)[1]

setup(
    name='official-resnet',
    version=VERSION,
    description='Deep residual networks on TensorFlow and Keras 3: a reference implementation',
    long_description=open('README.md', encoding='utf-8').read(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.11,<3.14',  # TensorFlow 2.21 has wheels for 3.11 to 3.13 only
    packages=find_packages(include=['official_resnet*', 'checkpoints_tools']),
    package_data={
        'official_resnet.inputs': ['imagenet_labels.tsv'],
        'official_resnet.reports': ['report.html.jinja'],
        'official_resnet.weights': ['published.tsv'],
    },
    # The commands of an installation without a clone. pip makes a script of each; see docs/index.md.
    entry_points={
        'console_scripts': [
            'resnet-cifar10 = official_resnet.cifar10_main:run',
            'resnet-imagenet = official_resnet.imagenet_main:run',
            'resnet-images = official_resnet.image_folder_main:run',
            'resnet-predict = official_resnet.predict_main:run',
            'resnet-report = official_resnet.report_main:run',
            'resnet-export = official_resnet.export_main:run',
            'resnet-convert = checkpoints_tools.read_ckpt:run',
        ],
    },
    install_requires=[
        'tensorflow~=2.21.0',
        'keras~=3.15.0',
        'tensorflow-datasets>=4.9.10',
        'importlib_resources',  # tensorflow-datasets 4.9.10 imports it without saying so
        'absl-py>=2.1',
        'numpy>=2.0',
        'google-crc32c>=1.5',  # the checksums of TFRecord files, without TensorFlow
        'pillow>=11',  # own images: --image_folder, predict_main
        'tqdm>=4.66',  # progress bars; tensorflow-datasets needs it anyway
    ],
    extras_require={
        'plots': ['matplotlib>=3.9', 'tensorboard~=2.20'],
        'report': ['jinja2>=3.1', 'matplotlib>=3.9', 'scikit-learn>=1.6', 'scipy>=1.14'],  # report_main
        'browser': ['selenium>=4.30'],  # the tests of its page; they also need Debian's chromium and chromium-driver
        'wandb': ['wandb>=0.31'],  # --track; one each, because each brings many packages
        'mlflow': ['mlflow>=3.17'],
        'trackio': ['trackio>=0.43'],
        'beam': ['apache-beam>=2.77'],  # ImageNet's shards built on a cluster
        'imagenet': ['scipy>=1.14'],  # ImageNet's development kit has its labels in a .mat file
        'convert': ['safetensors>=0.8'],  # checkpoints_tools; the other formats need nothing more
        # export_main: the formats of other runtimes; savedmodel, keras and torch need less or nothing
        'export': [
            'tf2onnx>=1.17',
            'onnx>=1.18',
            'onnxruntime>=1.20',
            'openvino>=2026.1',
            'ai-edge-litert>=2.1',
            'safetensors>=0.8',
        ],
        # Whom the parity tests and the benchmark compare with; pytorchcv and timm want torchvision, tf-slim tf_keras.
        'parity': [
            'torch==2.13.0',
            'torchvision==0.28.0',
            'pytorchcv>=0.0.74',
            'timm==1.0.31',
            'transformers==5.24.0',
            'keras-hub==0.32.0',
            'onnxruntime>=1.20',
            'tf2onnx>=1.17',
            'openvino==2026.4.1',
            'ai-edge-litert==2.3.0',
            'tf-slim==1.1.0',
            'tf_keras~=2.21.0',
            'jax>=0.10',  # a backend of Keras
            'opencv-python-headless<5',
            'safetensors>=0.8',
        ],
        'lint': ['ruff==0.17.6', 'mypy==2.4.1'],  # one version, one style and one check of types
        'test': [
            'pytest>=8',
            'pytest-xdist>=3.6',
            'hypothesis>=6.100',
            'matplotlib>=3.9',
            'tensorboard~=2.20',
            'safetensors>=0.8',
            'scipy>=1.14',
            'jinja2>=3.1',
            'scikit-learn>=1.6',
        ],
    },
)
