"""Show the degradation problem: plain nets against residual nets on CIFAR-10, 1512.03385 Fig. 1 and 6.

    python degradation_main.py --data_dir ~ --quick     # plain and residual, 20 and 56 layers: minutes on two cores
    python degradation_main.py --data_dir ~             # the paper's 64,000 steps each

On two cores of an AMD EPYC, --quick --train_epochs=40 took 43 minutes (n = 1): training error of plain-20
22.0 %, plain-56 68.8 %, residual-20 14.3 %, residual-56 23.7 %. The paper's steps have not been run.

A plain net of 56 layers has a higher *training* error than one of 20: it is not overfitting but harder to
optimise. With shortcuts (option A, which adds no parameter) the order is reversed, in the end. --quick: the
first 10,000 training pictures, 6 epochs, the rate dropped after 3 and 4.5. Nets of 110 layers or more begin
with an epoch at a tenth of the rate, as in the paper. The same command continues what was stopped; finished
nets are kept.
Results in --output_dir: degradation.png, degradation.json (curves, final errors, and what became of the claim).
"""

import sys

try:
    from absl import flags

    from official_resnet.experiments import experiment_program
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")

QUICK_EPOCHS = 6


def define_flags():
    """Return the flags, in a set of their own."""
    values = flags.FlagValues()
    experiment_program.define_flags(values, '/tmp/resnet_degradation')
    experiment_program.define_training_flags(values)
    experiment_program.define_depths(values, '20,56')
    return values


def run_degradation(values):
    """Train the nets the flags ask for, judge the claim, write the results."""
    from official_resnet import resnet_variants
    from official_resnet.experiments import runs

    config = runs.train_config(values, *experiment_program.find_data(values), QUICK_EPOCHS)
    depths = experiment_program.depths(values)
    axes = {'bn_momentum': config.spec.bn_momentum}
    nets = {
        f'{kind}-{depth}': {'spec': resnet_variants.cifar_spec(depth, shortcut=shortcut, **axes)}
        for kind, shortcut in (('plain', None), ('residual', 'A'))
        for depth in depths
    }
    runs.claim_folder(values.output_dir, runs.settings_of(config))
    nets = runs.train_nets(nets, config, values.output_dir)
    claim = judge(nets, depths[0], depths[-1]) if len(depths) > 1 else None
    if claim:
        print(claim['text'])
    title = f'Plain against residual nets: {runs.images_text(config)}'
    panels = {
        f'{kind} nets': {f'{depth} layers': nets[f'{kind}-{depth}']['curves'] for depth in depths}
        for kind in ('plain', 'residual')
    }
    result = {'settings': runs.settings_of(config), 'nets': nets, 'claim': claim}
    path = f'{values.output_dir}/degradation.png'
    runs.finish(values.output_dir, 'degradation', result, lambda figures: [figures.error_curves(panels, path, title)])


def judge(nets, shallow, deep):
    """Return what the final training errors of two depths say: {'text', 'plain', 'residual'}.

    Compared are the errors of the final weights on the training pictures as they are (train_error_inference): the
    same for every net, while the running error of the curves is that of weights that still change.

    Args:
        nets: {'plain-20': result of runs.train_net, ...}.
        shallow, deep: the depths to compare.
    """
    claim, sentences, depths = {}, [], [shallow, deep]
    for kind, verdict in (('plain', 'degradation'), ('residual', 'the deeper one is not better')):
        errors = [nets[f'{kind}-{depth}']['final']['train_error_inference'] for depth in depths]
        is_worse = None if None in errors else errors[1] > errors[0]
        claim[kind] = {'depths': depths, 'train_error_inference': errors, 'is_deep_worse': is_worse}
        texts = ['failed' if error is None else f'{error:.2f} %' for error in errors]
        verdict = {True: verdict, False: 'no degradation', None: 'not compared'}[is_worse]
        sentences.append(
            f'training error of {kind} nets: {shallow} layers {texts[0]}, {deep} layers {texts[1]}: {verdict}'
        )
    return claim | {'text': '; '.join(sentences)}


if __name__ == '__main__':
    sys.exit(experiment_program.run_experiment(sys.argv, __doc__, define_flags(), run_degradation))
