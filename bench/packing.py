"""Tokens per second of packed sequences against padded batches of the same rows, in the same trainer.

    python -m bench.packing                       4 layers of SmolLM2-135M's shape, seeded random weights, float32
    python -m bench.packing --clock cpu --threads 1    on a machine that is never quiet

Rows have log-normal lengths, as collections of chats have: half of them shorter than ``--median`` tokens, and few very long ones. The
second half of each row is learnt. Each turn takes the rows of a few packed sequences, and runs forward and backward over all of them in
each form, in an order that rotates:

- *padded*: in random order, so many at a time, padded to the longest: what a trainer does that is told nothing;
- *grouped*: sorted by length first, then as above;
- *default*: sorted, and laid out as our trainer does without ``sample_packing``, in whichever way it expects to be less work;
- *masked*: packed, the rows kept apart by a mask of all pairs of tokens, as transformers does by itself;
- *packed*: ``sample_packing: true``.

Only tokens of rows count, padding does not. The loss of every form is compared with that of the rows padded.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from bench.train_step import CLOCKS, SMOLLM2_135M, wegeft
from workers.answer_loss import AnswerLoss
from workers.batches import BatchPlan
from workers.layout import Batch, Layout, Packing, find_layout, pack, pad
from workers.tokenization import Example

CPU = torch.device("cpu")
FORMS = ("padded", "grouped", "default", "masked", "packed")


def make_rows(arguments: argparse.Namespace) -> list[Example]:
    """Return rows of random tokens whose lengths are log-normal within 16 and the sequence length."""
    random = np.random.default_rng(arguments.seed)
    lengths = np.exp(random.normal(np.log(arguments.median), arguments.sigma, arguments.rows))
    rows = []
    for length in np.clip(lengths.astype(int), 16, arguments.sequence_len).tolist():
        tokens = random.integers(0, arguments.vocabulary, length, dtype=np.int32)
        rows.append(Example(tokens, np.arange(length) >= length // 2))
    return rows


def make_model(layers: int, vocabulary: int) -> nn.Module:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SMOLLM2_135M, "num_hidden_layers": layers, "vocab_size": vocabulary}))
    model.config.use_cache = False
    return wegeft(model.requires_grad_(requires_grad=False).train(), 16)


def batches_of(form: str, passes: Sequence[Sequence[Example]], layout: Layout, arguments: argparse.Namespace) -> Iterator[Batch]:
    """Yield the batches of one form; passes: the rows of each packed sequence."""
    if form in ("packed", "masked"):
        packing = Packing.SEGMENTS if form == "packed" else Packing.POSITIONS
        yield from (pack(rows, CPU, layout.dtype, packing) for rows in passes)
        return
    rows = [row for rows in passes for row in rows]
    order = np.random.default_rng(arguments.seed).permutation(len(rows)).tolist()
    if form != "padded":
        order.sort(key=lambda number: len(rows[number].tokens))
    for start in range(0, len(rows), arguments.batch):
        together = [rows[number] for number in order[start : start + arguments.batch]]
        yield layout(together) if form == "default" else pad(together, CPU)


def run(model: nn.Module, loss: AnswerLoss, batches: Iterator[Batch], clock: Callable[[], float]) -> tuple[float, float]:
    """Return (seconds, summed loss) of forward and backward over all batches."""
    total, started = 0.0, clock()
    for batch in batches:
        part: Tensor = loss(batch)
        part.backward()  # type: ignore[no-untyped-call] # torch's own method
        total += part.item()
    seconds = clock() - started
    model.zero_grad(set_to_none=True)
    return seconds, total


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def report(turns: list[dict[str, tuple[float, float]]], tokens: list[int]) -> str:
    lines = ["| form | tokens/s | × padded | quartiles | × grouped | loss, relative to padded |", "|---|---:|---:|---:|---:|---:|"]
    for form in turns[0]:
        rate = statistics.median(count / turn[form][0] for count, turn in zip(tokens, turns, strict=True))
        low, middle, high = quartiles([turn["padded"][0] / turn[form][0] for turn in turns])
        grouped = statistics.median(turn["grouped"][0] / turn[form][0] for turn in turns)
        error = max(abs(turn[form][1] / turn["padded"][1] - 1) for turn in turns)
        lines.append(f"| {form} | {rate:.0f} | {middle:.2f} | {low:.2f}-{high:.2f} | {grouped:.2f} | {error:.1e} |")
    return "\n".join(lines)


def parsed(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="layers of the model")
    parser.add_argument("--vocabulary", type=int, default=SMOLLM2_135M["vocab_size"], help="tokens of the vocabulary")
    parser.add_argument("--batch", type=int, default=8, help="rows of a padded batch")
    parser.add_argument("--sequence-len", type=int, default=1024, help="tokens of a packed sequence, and of a row, at most")
    parser.add_argument("--sequences", type=int, default=6, help="packed sequences of a turn")
    parser.add_argument("--median", type=float, default=120, help="tokens of the median row")
    parser.add_argument("--sigma", type=float, default=1.0, help="standard deviation of the logarithm of a row's length")
    parser.add_argument("--rows", type=int, default=2000, help="rows of the data set")
    parser.add_argument("--turns", type=int, default=7, help="turns")
    parser.add_argument("--seed", type=int, default=0, help="of lengths, tokens and orders")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="what a second is; cpu is for one thread")
    parser.add_argument("--json", type=Path, help="write all turns here")
    arguments = parser.parse_args(given)
    if arguments.clock == "cpu" and arguments.threads != 1:
        parser.error("--clock cpu needs --threads 1: threads that wait for each other count as working")
    return arguments


def main(given: list[str] | None = None) -> None:
    arguments = parsed(given)
    torch.set_num_threads(arguments.threads)
    rows, model = make_rows(arguments), make_model(arguments.layers, arguments.vocabulary)
    loss = AnswerLoss(model)
    layout = find_layout(model, loss, rows)
    lengths = tuple(len(row.tokens) for row in rows)
    plan = BatchPlan(lengths, 1, arguments.sequences, arguments.seed, arguments.sequence_len)
    print(f"{len(rows)} rows of {sum(lengths) / len(rows):.0f} tokens in the mean, {max(lengths)} at most; {plan.sequences} sequences of")
    print(f"{arguments.sequence_len} tokens, {sum(lengths) / plan.sequences / arguments.sequence_len:.1%} full; {arguments.clock} clock\n")
    turns: list[dict[str, tuple[float, float]]] = []
    tokens: list[int] = []
    for number in range(arguments.turns):
        passes = [[rows[row] for row in sequence] for sequence in plan.step(number)]
        shift = number % len(FORMS)
        order = FORMS[shift:] + FORMS[:shift]
        taken = {form: run(model, loss, batches_of(form, passes, layout, arguments), CLOCKS[arguments.clock]) for form in order}
        turns.append({form: taken[form] for form in FORMS})
        tokens.append(sum(len(row.tokens) for sequence in passes for row in sequence))
    print(report(turns, tokens))
    if arguments.json:
        arguments.json.write_text(json.dumps({"tokens": tokens, "turns": turns}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
