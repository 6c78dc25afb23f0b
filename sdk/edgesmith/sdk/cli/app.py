"""The table of commands. A command's file is imported when it is called, never before.

Exit status: 0 done; 1 ran, but part of the input failed or a check did not hold; 2 usage, recipe
or config; 3 input or bundle unreadable; 4 refused; 5 device or backend; 130 interrupted.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from importlib.metadata import version

import click

from edgesmith.sdk.errors import EdgesmithError, MissingExtraError

# name: (module:attribute of a click command, extra that brings its packages, one line of help)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "convert": ("edgesmith.converters.cli:convert", "convert", "Turn a trained model into a bundle."),
    "explain": (
        "edgesmith.converters.cli_explain:explain",
        "convert",
        "Say what a device's TensorRT does not take of a model.",
    ),
    "calibrate": (
        "edgesmith.converters.cli_calibrate:calibrate",
        "convert",
        "Measure the ranges that INT8 needs.",
    ),
    "prune": (
        "edgesmith.converters.cli_prune:prune",
        "convert",
        "Take channels out of a trained network.",
    ),
    "distill": (
        "edgesmith.converters.cli_distill:distill",
        "convert",
        "Train a network beside a teacher.",
    ),
    "build": ("edgesmith.sdk.cli.build:build", "runtime", "Build a bundle's TensorRT engine on this device."),
    "run": ("edgesmith.sdk.cli.run:run", "runtime", "Run a bundle over a video, pictures or a camera."),
    "eval": ("edgesmith.sdk.cli.eval:evaluate", "runtime,eval", "Measure accuracy on labelled images."),
    "verify": ("edgesmith.sdk.cli.verify:verify", "runtime", "Self-test a bundle on this machine."),
    "bench": ("edgesmith.sdk.cli.bench:bench", "runtime", "Measure latency, throughput and memory."),
    "serve": ("edgesmith.sdk.cli.serve:serve", "runtime,serve", "Serve bundles over HTTP."),
    "batch": ("edgesmith.sdk.cli.batch:batch", "runtime,batch", "Run a bundle over an archive of images."),
    "triton": ("edgesmith.sdk.cli.triton:triton", "", "Write a model repository for NVIDIA's Triton server."),
    "inspect": ("edgesmith.sdk.cli.inspect:inspect", "", "Show what a bundle holds."),
    "doctor": ("edgesmith.sdk.cli.doctor:doctor", "", "Check this machine and say what to mend."),
    "estimate": (
        "edgesmith.sdk.cli.estimate:estimate_command",
        "",
        "Estimate speed and memory on a device.",
    ),
    "devices": ("edgesmith.sdk.cli.devices:devices", "", "List the device profiles."),
}


class _Commands(click.Group):
    """A group whose commands are imported by path when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        path, extra, _ = COMMANDS[cmd_name]
        module, attribute = path.split(":")
        try:
            command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            missing = error.name or str(error)
            if missing.startswith("edgesmith") or not extra:
                raise
            raise MissingExtraError(
                f"edgesmith {cmd_name} needs the package {missing}: pip install 'edgesmith[{extra}]'",
                extra=extra,
            ) from error
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("edgesmith"), message="%(prog)s %(version)s")
@click.option("--verbose", is_flag=True, help="Show the log, and tracebacks of errors.")
@click.pass_context
def app(ctx: click.Context, verbose: bool) -> None:
    """Trained PyTorch vision models in, one verified bundle out, detections on the robot."""
    ctx.obj = {"verbose": verbose}
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING,
        format="%(name)s: %(message)s" if verbose else "edgesmith: %(message)s",
    )
    for noisy in ("PIL", "matplotlib", "torch", "onnxscript", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def main(args: list[str] | None = None) -> None:
    """Entry point of the command line: every error of ours ends in one line and its exit status."""
    arguments = sys.argv[1:] if args is None else args
    verbose = "--verbose" in arguments
    try:
        status = app.main(arguments, prog_name="edgesmith", standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.Abort:
        _tell("interrupted")
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except KeyboardInterrupt:
        _tell("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`edgesmith inspect | head`): no traceback at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except EdgesmithError as error:
        if verbose:
            raise
        _tell(str(error))
        sys.exit(error.exit_status)
    sys.exit(status if isinstance(status, int) else 0)


def _tell(message: str) -> None:
    click.echo(click.style("edgesmith: ", fg="red", bold=True) + message, err=True)
