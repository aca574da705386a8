"""The text of --help, and the message for an unknown flag."""

import contextlib
import difflib
import os
import re
import textwrap
from collections.abc import Sequence

from absl import flags

from official_resnet import bounds, files
from official_resnet.command_line.flags import Number, Program, fields_of, settings
from official_resnet.command_line.program import HELP
from official_resnet.errors import UserError

WIDTH = 80  # columns
_HEADINGS = ('Data', 'Augmentation', 'Network', 'Training', 'Transfer', 'Evaluation and export', 'Machine', 'Logging')
_KINDS = {'int': 'N', 'float': 'X', 'string': 'TEXT', 'multi string': 'TEXT', 'number': 'X'}  # absl's name -> ours
_REPEAT = ';\n    repeat this option to specify a list of values'  # what absl adds to the text of such a flag
# What own_images.choose chooses for image_folder_main, without --recipe.
_BY_IMAGES = 'recipe', 'resnet_size', 'image_size', 'eval_image_size', 'batch_size', 'train_epochs'
# A flag of ours -> its names in other programs. If two flags share a name, the first flag is suggested.
OTHER_NAMES = {
    'base_learning_rate': 'learning_rate lr initial_learning_rate',
    'learning_rate': 'lr',
    'lr_schedule': 'scheduler lr_scheduler',
    'warmup_epochs': 'warmup',
    'train_epochs': 'epoch epochs num_epochs',
    'max_train_steps': 'step steps max_steps train_steps',
    'batch_size': 'batch train_batch_size bs',
    'weight_decay': 'wd',
    'optimizer': 'opt',
    'patience': 'early_stopping early_stopping_patience',
    'label_smoothing': 'smoothing',
    'auto_augment': 'aa randaugment rand_augment randaug trivialaugment trivial_augment',
    'mixup': 'mixup_alpha',
    'cutmix': 'cutmix_alpha',
    'random_erasing': 'reprob random_erase',
    'repeated_augmentation': 'aug_repeats ra_reps',
    'stochastic_depth': 'drop_path',
    'weight_averaging': 'ema model_ema swa averaging',
    'average_decay': 'ema_decay model_ema_decay',
    'test_views': 'tta test_time_augmentation flip_tta tta_level',
    'gradient_accumulation_steps': 'grad_accum grad_accum_steps accum_steps accumulate',
    'clip_norm': 'clip_grad',
    'resnet_size': 'model arch depth layers num_layers size',
    'variant': 'mode net network net_type',
    'depths': 'depth layers',
    'data_dir': 'data data_path dataset_dir',
    'image_folder': 'data_path image',
    'image_list': 'train_list test_list val_list train_csv test_csv csv',
    'tfds': 'dataset',
    'model_dir': 'output output_dir checkpoint_dir save_dir resume',
    'output_dir': 'output',
    'pretrained_model_checkpoint_path': 'pretrained weights',
    'model': 'weights',
    'fine_tune': 'finetune',
    'eval_only': 'evaluate eval',
    'num_gpus': 'gpus',
    'local_workers': 'workers',
    'datasets_num_private_threads': 'num_workers',
    'dtype': 'precision amp fp16 bf16 mixed_precision',
    'enable_tensorboard': 'tensorboard',
    'track': 'tracker report_to wandb mlflow trackio',
    'top': 'topk',
    'image_size': 'input_size img_size',
}


def with_flag_files(argv: Sequence[str], values: flags.FlagValues) -> list[str]:
    """Return the arguments with the content of each --flagfile in its place, without byte order marks."""
    _require_flag_files(argv[1:], (), [])
    arguments = values.read_flags_from_files(argv[1:], force_gnu=values.is_gnu_getopt())
    for i in reversed(range(len(arguments))):
        if arguments[i].startswith('\ufeff'):  # absl has not looked at what follows
            line = arguments[i][1:].strip()
            arguments[i : i + 1] = [line] if line and not line.startswith(('#', '//')) else []
    return [argv[0], *arguments]


def _require_flag_files(arguments, above, found):
    """Raise UserError if flag files that arguments name cannot be read, contain themselves, or are too many.

    `above` are the files that contain these arguments, and `found` all files so far. A pipe of the shell, /dev/fd/N, is
    left to absl, because it can be read only once.
    """
    for argument, value in zip(arguments, [*arguments, ''][1:], strict=True):
        name, equals, path = argument.strip().lstrip('\ufeff-').partition('=')
        path = os.path.expanduser((path if equals else value).strip())
        if name != 'flagfile' or not path or path.startswith('/dev/fd/'):
            continue
        if path in above:
            raise UserError(f'--flagfile={path} is in that file itself, or in one that it names; take it out')
        found.append(path)
        bounds.require('flag_files', len(found), 'the command', 'put the flags into fewer files')
        with files.read_errors(path, 'pass a file with flags', '--flagfile='):
            lines = files.read_text(path).splitlines()
        _require_flag_files(lines, (*above, path), found)


def help_of(argv: Sequence[str], doc: str, values: flags.FlagValues, row: Program | None) -> str:
    """Return the answer to --help, or to --helpfull: `text`, or absl's list of all flags.

    The examples call the program as the user did: by its path, or by the command that an installation made of it.
    """
    if not argv[0].endswith('.py') and (script := re.search(r'python (?:\w+/)*\w+\.py', doc)):
        doc = doc.replace(script[0], os.path.basename(argv[0]))
    if '--helpfull' in argv:
        return f'{doc}\nflags:\n{values.get_help()}'
    with contextlib.suppress(flags.Error, ValueError, RecursionError):  # other flags may be wrong
        values([argument for argument in argv if argument not in HELP])  # for --recipe
    return text(doc, values, row)


def fault(error: Exception, values: flags.FlagValues) -> str:
    """Return what to say about an error of parsing; ValueError: --noflag=value, or a --flagfile that is not text."""
    if isinstance(error, flags.UnrecognizedFlagError):
        return unknown(error.flagname, values)
    if isinstance(error, UnicodeDecodeError):
        return 'a --flagfile is not UTF-8 text; save it as UTF-8'
    if isinstance(error, RecursionError):  # absl's search for a similar name
        return 'a flag whose name has about a thousand characters is unknown'
    text = re.sub(r'\n(?=flags? )', '; ', str(error))  # absl shows a flag that was not passed as None
    text = re.sub(r'\bflag --(\w+)=None: ', r'--\1 is missing: ', text)
    text = re.sub(r'(?<= )\w+=None(, |(?=: ))', '', text).replace('flags : ', '').replace(', : ', ': ')
    return text + _as_fraction(text, values)


def _as_fraction(text, values):
    """Return a remedy to append if the value that absl refuses is a fraction in percent, else ''."""
    found = re.match(r'flag --(\w+)=(\d+\.?\d*) ?%?: ', text)
    parser = values[found[1]].parser if found and found[1] in values else None
    if not found or not isinstance(parser, Number) or (parser.upper_bound or 2) > 1:
        return ''
    fraction = float(found[2]) / 100
    return '' if parser.is_outside_bounds(fraction) else f'; for {found[2]} %, pass {fraction:g}'


def unknown(name: str, values: flags.FlagValues) -> str:
    """Return the message for an unknown flag: its name, and the flag that was probably meant."""
    bare = name.replace('-', '_')
    meant_by_others = [flag for flag, others in OTHER_NAMES.items() if bare in others.split()]
    known = [bare, *meant_by_others, *difflib.get_close_matches(bare[:100], list(values), 1, 0.7)]
    meant = next((other for other in known if other in values), None)
    return f'there is no flag --{name}' + (f'; use --{values[meant].name}' if meant else '')


def text(doc: str, values: flags.FlagValues, row: Program | None) -> str:
    """Return the text of --help: a program's docstring and its flags, which a training program groups."""
    if row:
        chosen = settings(values, row)
        groups: dict[str, list] = {heading: [] for heading in _HEADINGS}
        by_images = _BY_IMAGES if row.chooses_network and not values['recipe'].present else ()
        for flag, (field, _) in fields_of(row).items():
            default = 'chosen by the images' if flag in by_images else chosen.get(flag, field.default)
            groups[field.metadata['group']].append((values[flag], default))
    else:
        names = sorted(name for name in values if values[name].name == name)
        groups = {'Flags': [(values[name], values[name].default) for name in names]}
    lines = [_wrap_prose(doc.strip('\n'))]
    for heading, entries in groups.items():
        lines += ['', f'{heading}:']
        for flag, default in entries:
            lines += _entry(flag, default)
    obsolete = ' --helpfull also lists the obsolete flags.' if row else ''
    return '\n'.join([*lines, '', f'Defaults are in brackets.{obsolete}'])


def _entry(flag, default):
    """Return the lines for a flag: its names and type, then its meaning and default."""
    name = f'--[no]{flag.name}' if flag.boolean else f'--{flag.name}'
    names = ', '.join([name, *([f'-{flag.short_name}'] if flag.short_name else [])])
    words = getattr(flag.parser, 'enum_values', None)
    kind = '' if flag.boolean else '|'.join(words) if words else _KINDS.get(flag.flag_type(), 'A,B,...')
    meaning = f'{flag.help.removeprefix(f"<{kind}>: ").removesuffix(_REPEAT)}{_default_text(default)}'
    shown = kind if len(kind) < WIDTH - 6 else kind.replace('|', ' | ')  # a long list is wrapped
    return [*_wrapped(f'{names} {shown}', '  '), *_wrapped(meaning, '      ')]


def _wrapped(line, indent):
    options = {'break_long_words': False, 'break_on_hyphens': False}
    return textwrap.wrap(line, WIDTH, initial_indent=indent, subsequent_indent='      ', **options)


def _wrap_prose(doc):
    """Return a docstring in WIDTH columns. Paragraphs are wrapped; the comment of a long command goes above it."""
    paragraphs = []
    for paragraph in doc.split('\n\n'):
        lines = paragraph.splitlines()
        if max(map(len, lines), default=0) <= WIDTH:
            paragraphs.append(paragraph)
        elif any(line.startswith(' ') for line in lines):  # commands
            paragraphs.append('\n'.join(part for line in lines for part in _split_comment(line)))
        else:
            paragraphs.append(textwrap.fill(paragraph, WIDTH, break_on_hyphens=False))
    return '\n\n'.join(paragraphs)


def _split_comment(line):
    command, mark, comment = line.partition('  # ')
    if len(line) <= WIDTH or not mark:
        return [line]
    comments = textwrap.wrap(comment, WIDTH, initial_indent='    # ', subsequent_indent='    # ')
    return [*comments, command.rstrip()] if command.strip() else comments


def _default_text(default):
    if default in (None, '', [], ()):
        return ''
    if isinstance(default, bool):
        return f' [{"on" if default else "off"}]'
    if isinstance(default, tuple | list):
        texts = [f'{value:g}' if isinstance(value, float) else str(value) for value in default]
        default = ', '.join(texts) if len(','.join(texts)) > WIDTH // 2 else ','.join(texts)  # a long list is wrapped
    return f' [{default:g}]' if isinstance(default, float) else f' [{default}]'
