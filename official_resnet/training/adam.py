"""Adam, with a smaller rate for a pretrained backbone if asked for."""

import keras

from official_resnet.errors import UserError
from official_resnet.training.config import TrainConfig
from official_resnet.training.optimizers import rate_factors


def build(config: TrainConfig, schedule: keras.optimizers.schedules.LearningRateSchedule, options: dict) -> 'Adam':
    """Return the Adam of a config; `options` are those that optimizers.build gives to every optimizer.

    Raises:
        UserError: there is weight decay.
    """
    if config.weight_decay:
        raise UserError(
            f'--weight_decay={config.weight_decay} with --optimizer=adam, which has none here; '
            'pass --weight_decay=0, or --optimizer=momentum'
        )
    # The numbers of 1412.6980 Alg. 1, which are torch.optim.Adam's; Keras' epsilon is 1e-7.
    return Adam(schedule, beta_1=0.9, beta_2=0.999, epsilon=1e-8, **options)


@keras.saving.register_keras_serializable(package='official_resnet')
class Adam(keras.optimizers.Adam):
    """keras.optimizers.Adam (arXiv:1412.6980) with `backbone_factor` and `head_layers`, as in CoupledSGD."""

    def __init__(self, *args, backbone_factor=1.0, head_layers=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.backbone_factor = float(backbone_factor)
        self.head_layers = tuple(head_layers)

    def build(self, variables):
        variables = list(variables)
        self._rate_factor_of = rate_factors(self, variables)
        super().build(variables)

    def update_step(self, gradient, variable, learning_rate):
        learning_rate = learning_rate * self._rate_factor_of[self._var_key(variable)]
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        return super().get_config() | {'backbone_factor': self.backbone_factor, 'head_layers': list(self.head_layers)}
