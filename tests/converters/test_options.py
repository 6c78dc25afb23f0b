"""Every key of the recipe is an option of the command."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from edgesmith.converters.options import HELP, keys, parsed, recipe_options
from edgesmith.converters.recipe import Recipe
from edgesmith.converters.recipe_keys import leaf_keys

KINDS = dict(keys())


def test_every_key_has_an_option_and_a_line_of_help() -> None:
    assert {k for k in leaf_keys(Recipe) if k != "base"} <= set(KINDS)
    assert list(HELP) == list(KINDS)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("input.size", "416,640", [416, 640]),
        ("input.size", "[416, 640]", [416, 640]),
        ("input.size", "224", 224),
        ("input.batch", "4", 4),
        ("input.batch", "{min = 1, opt = 2, max = 4}", {"min": 1, "opt": 2, "max": 4}),
        ("input.batch", '{"min": 1, "opt": 2, "max": 4}', {"min": 1, "opt": 2, "max": 4}),
        ("input.mean", "0.485, 0.456,0.406", [0.485, 0.456, 0.406]),
        ("input.mean", "127", 127),
        ("input.upscale", "false", False),
        ("precision.mode", "int8", "int8"),
        ("precision.keep_float", "stem*,head*", ["stem*", "head*"]),
        ("precision.keep_float", "stem*", ["stem*"]),
        ("precision.repairs", "auto", "auto"),
        ("precision.repairs", "equalize", ["equalize"]),
        ("model.python_path", "src", ["src"]),
        ("model.factory", "3", "3"),
        ("model.head_options", "{strides = [8, 16]}", {"strides": [8, 16]}),
        ("labels", "names.txt", "names.txt"),
        ("labels", '["a", "b"]', ["a", "b"]),
        ("data.evaluation", '{images = "val"}', {"images": "val"}),
        ("data.evaluation.mask_values", "0,255", [0, 255]),
        ("nms.iou", "0.5", 0.5),
        ("nms.candidates", "many", "many"),
    ],
)
def test_texts_become_what_the_recipe_holds(key: str, text: str, value: Any) -> None:
    assert parsed(text, KINDS[key]) == value


def test_a_fragment_that_is_neither_toml_nor_json() -> None:
    with pytest.raises(click.BadParameter, match="neither TOML nor JSON"):
        parsed("[1, 2", KINDS["input.size"])


def test_the_command_gets_what_was_given_by_dotted_key() -> None:
    seen: dict[str, Any] = {}

    @click.command()
    @recipe_options
    @click.pass_context
    def command(ctx: click.Context) -> None:
        seen.update(ctx.obj["overrides"])

    arguments = ["--input.size", "8,8", "--precision.mode", "fp32", "--data.evaluation.images", "val"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert seen == {"input.size": [8, 8], "precision.mode": "fp32", "data.evaluation.images": "val"}
