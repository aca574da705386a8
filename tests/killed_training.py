"""Train two epochs and die of SIGKILL at a step: python killed_training.py DATA_DIR MODEL_DIR STEP|None."""

import os
import signal
import sys

from official_resnet.training import devices

devices.start_tensorflow()  # as the programs do

import keras  # noqa: E402

from official_resnet import resnet_run_loop, resnet_variants  # noqa: E402
from official_resnet.training import callbacks  # noqa: E402
from official_resnet.training.config import MachineConfig  # noqa: E402


class KillAt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if sys.argv[3] != 'None' and logs['step'] >= int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)


config = resnet_run_loop.TrainConfig(
    resnet_variants.cifar_spec(8),
    train_epochs=2,
    batch_size=16,
    seed=3,
    machine=MachineConfig(data_dir=sys.argv[1], model_dir=sys.argv[2], save_checkpoint_minutes=0, steps_per_call=2),
)
resnet_run_loop.train(config, [callbacks.MetricsJSON(sys.argv[2]), KillAt()])
