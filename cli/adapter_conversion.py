"""``wgctl adapters convert``: derived formats of a version, made by a worker of the service."""

from __future__ import annotations

from typing import get_args

import rich_click as click

from cli.connection import connect
from cli.options import example, json_option
from cli.output import note, print_json, say
from wegeft.contracts.conversion import ConversionAnswer, ConversionRequest
from wegeft.contracts.errors import InvalidSetting
from wegeft.contracts.formats import DerivedFormat, StoredDtype


@click.command(
    "convert",
    epilog=example(
        "wgctl adapters convert demo/arithmetic@3 --format lora --watch\n"
        "wgctl adapters convert demo/arithmetic@3 --format gguf --dtype q8_0"
    ),
)
@click.argument("ref")
@click.option(
    "--format",
    "formats",
    required=True,
    multiple=True,
    type=click.Choice(get_args(DerivedFormat)),
    help="lora: a standard LoRA, for vLLM, PEFT and most engines. gguf: for llama.cpp and Ollama. mlx: for mlx-lm. Can be given again.",
)
@click.option(
    "--dtype",
    type=click.Choice(get_args(StoredDtype)),
    default="float32",
    show_default=True,
    help="How numbers are stored; q8_0 is for gguf alone.",
)
@click.option("--watch", "is_watching", is_flag=True, help="Follow the job, and exit as it ends. Ctrl-C ends the looking, not the job.")
@json_option
def convert_in_worker(ref: str, formats: tuple[DerivedFormat, ...], dtype: StoredDtype, *, is_watching: bool, is_json: bool) -> None:
    """Have a worker convert a published version, and attach what it has made, for everybody who may read the version.

    Needs no base model here: the worker fetches it, as for training. All formats of one command are attached together, or none is; what
    is attached already is not made again. The job is one like any other: wgctl jobs lists, follows and cancels it.
    """
    wanted = _request(formats, dtype)
    with connect() as client:
        answer = client.convert(ref, wanted)
        if not is_json:
            _tell(answer)
        job = answer.job
        if job is not None and is_watching:
            from cli.jobs import end_like, follow_to_end

            job = follow_to_end(client, job.id, is_quiet=is_json)
            answer = answer.model_copy(update={"job": job})
        if is_json:
            print_json(answer)
        if job is not None and is_watching:
            end_like(job)


def _request(formats: tuple[DerivedFormat, ...], dtype: StoredDtype) -> ConversionRequest:
    wanted = tuple(dict.fromkeys(formats))
    if dtype == "q8_0" and wanted != ("gguf",):
        raise InvalidSetting("only GGUF adapters have this type", path="--dtype", value=dtype)
    return ConversionRequest(formats=wanted, dtype=dtype)


def _tell(answer: ConversionAnswer) -> None:
    for one in answer.attached:
        say(f"{one.format} of {one.dtype} is attached to {answer.ref} already")
        note(f"wgctl adapters download {answer.ref} --format {one.format} -o FOLDER")
    if answer.job is not None:
        say(answer.job.id)
