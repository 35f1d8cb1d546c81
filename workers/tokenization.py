"""Rows to tokens, and which of them are learnt.

By default only answers are learnt, with the token that ends them:

- **chat**: the tokenizer's chat template, or the job's. Every assistant turn is learnt, from behind the generation prompt to the
  end-of-turn token. Where the template has ``{% generation %}`` blocks, those say what is learnt instead.
- **alpaca**: the text template of Stanford Alpaca, also for models that have a chat template, as other trainers do; the output is learnt.
- **prompt_completion**: the prompt and the completion, joined as they are; the completion is learnt.
- **completion**: all of the text is learnt.

The last answer always ends in a token that ends generation: the template's, or else the tokenizer's end-of-sequence token is added.

A prompt is cut off where the tokens of the prompt alone and of the whole row part, so that what a model reads when it answers is what
it was trained behind; a token that spans the border is learnt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wegeft.contracts.errors import InvalidData, Problem
from workers.rendering import Prompt, Renderer, Text
from workers.rows import Row

_ROWS_AT_ONCE = 256
PROBLEMS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Example:
    """One row, ready to train on."""

    tokens: NDArray[np.int32]
    is_learnt: NDArray[np.bool_]
    """For each token, whether the model is taught to say it; never the first."""

    @property
    def answer_tokens(self) -> int:
        """How many tokens are learnt."""
        return int(self.is_learnt.sum())


@dataclass(frozen=True, slots=True)
class Question:
    """One row to answer: the prompt as the model reads it, and the expected answer."""

    tokens: NDArray[np.int32]
    prompt: str
    expected: str


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a job says about tokens."""

    sequence_len: int
    excess: Literal["truncate", "drop", "error"] = "truncate"
    learns_inputs: bool = False


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """The rows of a data set as tokens."""

    examples: tuple[Example, ...]
    truncated: int
    """Rows that were cut to the limit."""
    dropped: int
    """Rows left out: over the limit, or cut before their answer began."""

    @property
    def tokens(self) -> int:
        """All tokens."""
        return sum(len(example.tokens) for example in self.examples)

    @property
    def answer_tokens(self) -> int:
        """The tokens that are learnt."""
        return sum(example.answer_tokens for example in self.examples)


def encode(rows: Sequence[Row], renderer: Renderer, rules: Rules, where: str = "datasets") -> Encoding:
    """Return the tokens of ``rows``; ``where`` names the data in messages.

    Raises ``InvalidData`` for rows that the template refuses, rows over the limit where that is an error, and if no row is left.
    """
    examples: list[Example] = []
    problems: list[Problem] = []
    truncated = dropped = 0
    for number, example in enumerate(_examples(rows, renderer, rules), 1):
        if isinstance(example, InvalidData):
            problems += [problem.model_copy(update={"path": f"{where} row {number}"}) for problem in example.problems]
            continue
        length = len(example.tokens)
        if length > rules.sequence_len and rules.excess == "error":
            problems.append(_too_long(f"{where} row {number}", length, rules.sequence_len))
            continue
        kept = _fit(example, rules)
        dropped += kept is None
        truncated += kept is not None and kept is not example
        examples += [kept] if kept else []
    _raise_any(problems)
    if not examples:
        hint = f"sequence_len is {rules.sequence_len}; give a larger one, or shorter rows"
        raise InvalidData(f"no row has an answer within {rules.sequence_len} tokens", path=where, hint=hint)
    return Encoding(examples=tuple(examples), truncated=truncated, dropped=dropped)


def _fit(example: Example, rules: Rules) -> Example | None:
    if len(example.tokens) <= rules.sequence_len:
        kept = example
    elif rules.excess == "drop":
        return None
    else:
        kept = Example(example.tokens[: rules.sequence_len], example.is_learnt[: rules.sequence_len])
    return kept if kept.is_learnt.any() else None


def _too_long(path: str, length: int, limit: int) -> Problem:
    return Problem(path=path, message=f"longer than {limit} tokens", value=str(length), hint="excess_length_strategy: truncate or drop")


def _raise_any(problems: list[Problem]) -> None:
    if problems:
        more = len(problems) - PROBLEMS_SHOWN
        tail = [Problem(message=f"and {more} more problem{'s' if more > 1 else ''}")] if more > 0 else []
        shown = [*problems[:PROBLEMS_SHOWN], *tail]
        raise InvalidData(f"{len(problems)} row{'s' if len(problems) > 1 else ''} cannot be trained on", problems=shown)


def _examples(rows: Sequence[Row], renderer: Renderer, rules: Rules) -> Iterator[Example | InvalidData]:
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        texts = [_render(row, renderer) for row in rows[start : start + _ROWS_AT_ONCE]]
        tokens = {is_chat: iter(_tokenize(texts, renderer, is_chat=is_chat)) for is_chat in (True, False)}
        for text in texts:
            if isinstance(text, Text):
                prefixes = [next(tokens[text.is_chat]) for _ in text.prefixes]
                yield _example(text, prefixes, renderer, rules)
            else:
                yield text


def _render(row: Row, renderer: Renderer) -> Text | InvalidData:
    try:
        return renderer.render(row)
    except InvalidData as error:
        return error


def _tokenize(texts: Sequence[Text | InvalidData], renderer: Renderer, *, is_chat: bool) -> list[list[int]]:
    wanted = [text for text in texts if isinstance(text, Text) and text.is_chat == is_chat]
    return renderer.tokenize([prefix for text in wanted for prefix in text.prefixes], is_chat=is_chat)


def _example(text: Text, prefixes: Sequence[list[int]], renderer: Renderer, rules: Rules) -> Example:
    """Mark what is learnt in the tokens of the whole text, ``prefixes[-1]``, by where the tokens of its prefixes part from it."""
    tokens = prefixes[-1]
    is_learnt = np.zeros(len(tokens) + 1, dtype=np.bool_)
    for number, (start, end) in enumerate(text.answers):
        first = _shared(prefixes[2 * number], tokens) if start else 0
        last = _shared(prefixes[2 * number + 1], tokens) if end < len(text.whole) else len(tokens)
        is_learnt[first : _end_of_turn(tokens, first, last, renderer)] = True
    if not _ends(tokens, renderer):
        tokens = [*tokens, renderer.end_token]
        is_learnt[len(tokens) - 1] = True
    if rules.learns_inputs:
        is_learnt[: len(tokens)] = True
    is_learnt[0] = False
    return Example(np.array(tokens, dtype=np.int32), is_learnt[: len(tokens)].copy())


def _shared(prefix: Sequence[int], whole: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common at their beginning."""
    for index, (left, right) in enumerate(zip(prefix, whole, strict=False)):
        if left != right:
            return index
    return min(len(prefix), len(whole))


def _end_of_turn(tokens: Sequence[int], first: int, end: int, renderer: Renderer) -> int:
    """Return where learning ends: behind the control token that closes the turn if only blank text follows it, or else at ``end``."""
    for index in range(end - 1, first - 1, -1):
        if tokens[index] in renderer.control_tokens:
            return index + 1
        if not renderer.is_blank(tokens[index]):
            break
    return end


def _ends(tokens: Sequence[int], renderer: Renderer) -> bool:
    """Whether the last token that is not blank is a control token, so that a model that learnt the row knows how to stop."""
    last = next((token for token in reversed(tokens) if token in renderer.control_tokens or not renderer.is_blank(token)), None)
    return last in renderer.control_tokens


def questions_of(rows: Sequence[Row], renderer: Renderer, max_rows: int) -> tuple[Question, ...]:
    """Return up to ``max_rows`` of the rows as prompts with their last answers; rows without a prompt are passed over."""
    prompts: list[Prompt] = []
    for row in rows:
        if len(prompts) == max_rows:
            break
        prompt = renderer.prompt(row)
        prompts += [prompt] if prompt else []
    return tuple(_question(prompt, renderer) for prompt in prompts)


def _question(prompt: Prompt, renderer: Renderer) -> Question:
    (tokens,) = renderer.tokenize([prompt.text], is_chat=prompt.is_chat)
    if not prompt.is_chat and tokens and tokens[-1] == renderer.end_token:
        tokens = tokens[:-1]  # Some tokenizers end every text; a prompt goes on.
    return Question(np.array(tokens, dtype=np.int32), prompt.shown, prompt.expected)
