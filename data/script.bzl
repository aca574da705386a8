"""Run a Python script of this folder with the python3 of the environment, as an executable with runfiles.

This is a rule of our own because Bazel 8 removed py_binary and sh_binary, and Debian's Bazel 4.2.3 needs downloads for
them. It needs no external repository, so it builds offline, with WORKSPACE and with MODULE.bazel.
"""

_LAUNCHER = """#!/usr/bin/env bash
# Runs {script} with the python3 on the PATH.
set -euo pipefail
if [[ -n "${{RUNFILES_DIR:-}}" && -e "${{RUNFILES_DIR}}/{script}" ]]; then
  runfiles="${{RUNFILES_DIR}}"
elif [[ -e "$0.runfiles/{script}" ]]; then
  runfiles="$0.runfiles"
else
  runfiles="$(dirname "$(readlink -f "$0")")/{name}.runfiles"
fi
python="$(command -v python3)" || {{ echo "{name}: there is no python3 on the PATH; install Python 3.11 or later" >&2; exit 1; }}
if ! (cd / && "$python" -c 'import {modules}') 2>/dev/null; then
  echo "{name}: $python cannot import {modules}; run '$python -m pip install {install}' in the folder of the" \\
    "repository, or put the python3 that has it first on the PATH" >&2
  exit 1
fi
exec "$python" "$runfiles/{script}" "$@"
"""

def _script_impl(ctx):
    launcher = ctx.actions.declare_file(ctx.label.name)
    main = ctx.file.main
    ctx.actions.write(
        output = launcher,
        content = _LAUNCHER.format(
            install = ctx.attr.install,
            modules = ", ".join(ctx.attr.modules),
            name = ctx.label.name,
            script = ctx.workspace_name + "/" + main.short_path,
        ),
        is_executable = True,
    )
    return [DefaultInfo(
        executable = launcher,
        files = depset([launcher]),
        runfiles = ctx.runfiles(files = [main]),
    )]

script = rule(
    implementation = _script_impl,
    doc = "An executable that runs a Python script; the packages it imports are those of the environment.",
    attrs = {
        "install": attr.string(default = ".", doc = "What a message tells the user to install with pip."),
        "main": attr.label(allow_single_file = [".py"], mandatory = True),
        "modules": attr.string_list(default = ["official_resnet"], doc = "Modules without which it cannot start."),
    },
    executable = True,
)
