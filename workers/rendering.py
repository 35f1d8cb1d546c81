"""Rows to text: chat templates, the Alpaca template, and which characters are the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import jinja2

from wegeft.contracts.errors import InvalidData, InvalidJob, shorten
from workers.rows import Chat, Completion, Instruction, PromptCompletion, Row, Turn

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
"""Source: Stanford Alpaca, github.com/tatsu-lab/stanford_alpaca."""
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")

Tokenizer = Any
"""A tokenizer of transformers, which is untyped."""


@dataclass(frozen=True, slots=True)
class Text:
    """A row as the model reads it."""

    whole: str
    answers: tuple[tuple[int, int], ...]
    """Where each answer begins and ends, in characters."""
    is_chat: bool
    """A chat template writes its control tokens itself; the tokenizer adds its own to any other text."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The text up to each beginning and end of an answer, and the whole text last."""
        return (*(self.whole[:place] for answer in self.answers for place in answer), self.whole)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model reads before it answers."""

    text: str
    is_chat: bool
    shown: str
    """The part that the row's author wrote last, for people to read."""
    expected: str


class Renderer:
    """Writes rows for one tokenizer, with its chat template or the given one.

    Raises ``InvalidJob`` for a template that is no Jinja, and for a tokenizer that has no token to end an answer with.
    """

    def __init__(self, tokenizer: Tokenizer, chat_template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._template = _template_of(tokenizer, chat_template)
        self._marks_answers = bool(self._template and _GENERATION_BLOCK.search(self._template))
        if tokenizer.eos_token_id is None:
            raise InvalidJob("the model's tokenizer has no end-of-sequence token, so an answer could not end", path="base_model")
        self.end_token: int = tokenizer.eos_token_id
        added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.control_tokens: frozenset[int] = frozenset(tokenizer.all_special_ids) | added
        self._blanks: dict[int, bool] = {}

    def is_blank(self, token: int) -> bool:
        """Whether a token is nothing but white space."""
        known = self._blanks.get(token)
        if known is None:
            known = self._blanks[token] = not self._tokenizer.decode([token]).strip()
        return known

    def tokenize(self, texts: Sequence[str], *, is_chat: bool) -> list[list[int]]:
        """Return the tokens of each text."""
        if not texts:
            return []
        encoded: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=not is_chat, return_attention_mask=False)["input_ids"]
        return encoded

    def render(self, row: Row) -> Text:
        """Return the row's text and its answers.

        Raises ``InvalidData`` if the template refuses the row or hides where answers are, ``InvalidJob`` for a chat without a template.
        """
        match row:
            case Chat(turns):
                return self._marked(turns) if self._marks_answers else self._by_prefixes(turns)
            case Instruction():
                prompt = alpaca_prompt(row)
                return _joined(prompt, row.output)
            case PromptCompletion(prompt, completion):
                return _joined(prompt, completion)
            case Completion(text):
                return _joined("", text)
            case _:
                assert_never(row)

    def prompt(self, row: Row) -> Prompt | None:
        """Return what comes before the row's last answer, and that answer; None for a row without a prompt."""
        match row:
            case Chat(turns):
                text = self._apply(turns[:-1], opens_answer=True)
                return Prompt(text, True, turns[-2].content, turns[-1].content)
            case Instruction(instruction, context, output):
                shown = f"{instruction}\n{context}" if context else instruction
                return Prompt(alpaca_prompt(row), False, shown, output)
            case PromptCompletion(prompt, completion):
                return Prompt(prompt, False, prompt, completion)
            case Completion():
                return None
            case _:
                assert_never(row)

    def _apply(self, turns: Sequence[Turn], *, opens_answer: bool = False) -> str:
        return self._rendered(turns, add_generation_prompt=opens_answer)[0]

    def _rendered(self, turns: Sequence[Turn], **options: bool) -> tuple[str, list[tuple[int, int]]]:
        """Run the template, in the sandbox that transformers runs every template in."""
        from transformers.utils.chat_template_utils import render_jinja_template

        if self._template is None:
            hint = "give chat_template a Jinja template, or rows of type prompt_completion"
            raise InvalidJob("the base model has no chat template, which rows of type chat need", path="chat_template", hint=hint)
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            texts, marks = render_jinja_template([messages], chat_template=self._template, **options, **self._tokenizer.special_tokens_map)
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise InvalidData(f"the chat template refuses the row: {shorten(str(error))}", hint="does it know all roles?") from error
        return texts[0], marks[0] if marks else []

    def _marked(self, turns: Sequence[Turn]) -> Text:
        whole, marks = self._rendered(turns, return_assistant_tokens_mask=True)
        answers = tuple((start, end) for start, end in marks if start < end)
        if not answers:
            raise InvalidData("the chat template marks no answer", hint="put {% generation %} … {% endgeneration %} around the answer")
        return Text(whole, answers, is_chat=True)

    def _by_prefixes(self, turns: Sequence[Turn]) -> Text:
        """Find each answer by rendering the turns before it, and the turns up to it."""
        whole = self._apply(turns)
        answers: list[tuple[int, int]] = []
        for index in (index for index, turn in enumerate(turns) if turn.role == "assistant"):
            before = self._apply(turns[:index], opens_answer=True)
            through = whole if index == len(turns) - 1 else self._apply(turns[: index + 1])
            if not (whole.startswith(through) and through.startswith(before) and len(before) < len(through)):
                raise InvalidData(
                    f"the chat template writes message {index + 1} differently once others follow, so its answer cannot be found",
                    hint="give a chat_template with {% generation %} … {% endgeneration %} around the answer, or rows of one question each",
                )
            answers.append((len(before), len(through)))
        return Text(whole, tuple(answers), is_chat=True)


def alpaca_prompt(row: Instruction) -> str:
    """Return the prompt that Stanford Alpaca writes for an instruction."""
    template = ALPACA_WITH_INPUT if row.input else ALPACA_WITHOUT_INPUT
    # One pass over the template, so that braces in a row are never taken for fields.
    return template.format(instruction=row.instruction, input=row.input)


def _joined(prompt: str, answer: str) -> Text:
    return Text(prompt + answer, ((len(prompt), len(prompt) + len(answer)),), is_chat=False)


def _template_of(tokenizer: Tokenizer, given: str | None) -> str | None:
    if given is None:
        return _own_template(tokenizer)
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        render_jinja_template([[{"role": "user", "content": ""}]], chat_template=given)
    except jinja2.TemplateSyntaxError as error:
        raise InvalidJob(f"the template is not Jinja: {error.message}", path="chat_template", value=given[:80]) from error
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError):
        return given  # It may need more than one empty message; rows will tell.
    return given


def _own_template(tokenizer: Tokenizer) -> str | None:
    try:
        template: str = tokenizer.get_chat_template()
    except ValueError:
        return None
    return template
