"""Which tokens of a row are learnt, token by token, for every type of row and shape of template."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.tiny_models import CHAT_TEMPLATE, make_tokenizer
from wegeft.contracts.errors import InvalidData, InvalidJob
from workers.rendering import Renderer, alpaca_prompt
from workers.rows import Chat, Completion, Instruction, PromptCompletion, Row, Turn
from workers.tokenization import Encoding, Rules, encode, questions_of

ONE_TURN = Chat((Turn("user", "hi"), Turn("assistant", "yo")))
TWO_TURNS = Chat((Turn("system", "be"), Turn("user", "a"), Turn("assistant", "bc"), Turn("user", "d"), Turn("assistant", "e")))
GENERATION_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}U:{{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)
PLAIN_TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
FORGETFUL_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.content }}|{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"
)


def encode_one(row: Row, tokenizer: Any = None, template: str | None = None, **rules: Any) -> tuple[list[str], list[str]]:
    """Return all pieces of the row, and the learnt ones."""
    tokenizer = tokenizer or make_tokenizer()
    (example,) = encode([row], Renderer(tokenizer, template), Rules(**{"sequence_len": 1000, **rules})).examples
    pieces = [tokenizer.decode([token]) for token in example.tokens]
    return pieces, [piece for piece, is_learnt in zip(pieces, example.is_learnt, strict=True) if is_learnt]


def learnt(*args: Any, **options: Any) -> list[str]:
    return encode_one(*args, **options)[1]


def encode_all(rows: list[Row], **rules: Any) -> Encoding:
    return encode(rows, Renderer(make_tokenizer()), Rules(**{"sequence_len": 1000, **rules}))


def test_a_chat_teaches_the_answer_and_its_end_and_nothing_else() -> None:
    pieces, answers = encode_one(ONE_TURN)
    assert pieces == [*["<|im_start|>", *"user\nhi", "<|im_end|>", "\n"], *["<|im_start|>", *"assistant\nyo", "<|im_end|>", "\n"]]
    assert answers == ["y", "o", "<|im_end|>"]


def test_every_assistant_turn_is_learnt() -> None:
    assert learnt(TWO_TURNS) == ["b", "c", "<|im_end|>", "e", "<|im_end|>"]


def test_masks_are_at_the_right_places() -> None:
    tokenizer = make_tokenizer()
    (example,) = encode([TWO_TURNS], Renderer(tokenizer), Rules(sequence_len=1000)).examples
    text = tokenizer.decode(example.tokens)
    start = len(tokenizer(text[: text.index("bc")], add_special_tokens=False)["input_ids"])
    assert np.flatnonzero(example.is_learnt).tolist()[:3] == [start, start + 1, start + 2]
    assert example.answer_tokens == 5


def test_inputs_are_learnt_where_asked_but_never_the_first_token() -> None:
    pieces, answers = encode_one(ONE_TURN, learns_inputs=True)
    assert answers == pieces[1:]


def test_generation_blocks_of_a_template_decide() -> None:
    assert learnt(TWO_TURNS, template=GENERATION_TEMPLATE) == ["b", "c", "<|im_end|>", "e", "<|im_end|>"]


def test_a_template_without_control_tokens_gets_an_end_token() -> None:
    pieces, answers = encode_one(TWO_TURNS, template=PLAIN_TEMPLATE)
    assert answers == ["b", "c", "\n", "e", "\n", "<|im_end|>"]
    assert pieces[-1] == "<|im_end|>"


def test_a_template_that_hides_where_answers_are_is_refused() -> None:
    with pytest.raises(InvalidData) as caught:
        encode_one(TWO_TURNS, template=FORGETFUL_TEMPLATE)
    (problem,) = caught.value.problems
    assert problem.path == "datasets row 1"
    assert "writes message 3 differently once others follow" in problem.message
    assert "{% generation %}" in (problem.hint or "")


def test_generation_blocks_help_a_template_that_changes_earlier_turns() -> None:
    marked = FORGETFUL_TEMPLATE.replace("{{ m.content }}|", "{% generation %}{{ m.content }}|{% endgeneration %}")
    assert learnt(TWO_TURNS, template=marked)[-1] == "<|im_end|>"


def test_a_template_that_marks_nothing_is_refused() -> None:
    with pytest.raises(InvalidData, match="marks no answer"):
        encode_one(ONE_TURN, template="{{ messages[0].content }}{% if false %}{% generation %}x{% endgeneration %}{% endif %}")


def test_a_template_that_writes_no_answer_is_refused() -> None:
    with pytest.raises(InvalidData, match="cannot be found"):
        encode_one(ONE_TURN, template="{{ messages[0].content }}")


def test_a_template_that_refuses_rows_says_which_ones() -> None:
    picky = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHAT_TEMPLATE
    with pytest.raises(InvalidData) as caught:
        encode([ONE_TURN, TWO_TURNS], Renderer(make_tokenizer(), picky), Rules(sequence_len=1000), "test_datasets")
    (problem,) = caught.value.problems
    assert problem.path == "test_datasets row 2"
    assert "no system here" in problem.message


@pytest.mark.parametrize("template", ["{{ messages.__class__.__mro__ }}", "{{ cycler.__init__.__globals__.os.system('true') }}"])
def test_templates_run_in_a_sandbox(template: str) -> None:
    with pytest.raises(InvalidData, match="refuses the row"):
        encode_one(ONE_TURN, template=template)


def test_a_template_that_is_no_jinja_is_refused_at_once() -> None:
    with pytest.raises(InvalidJob, match="not Jinja") as caught:
        Renderer(make_tokenizer(), "{% for m in messages %}")
    assert caught.value.problems[0].path == "chat_template"


def test_a_chat_needs_a_template_and_is_refused_once() -> None:
    renderer = Renderer(make_tokenizer(chat_template=None))
    with pytest.raises(InvalidJob, match="no chat template") as caught:
        encode([ONE_TURN] * 50, renderer, Rules(sequence_len=1000))
    assert len(caught.value.problems) == 1


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InvalidJob, match="no end-of-sequence token"):
        Renderer(tokenizer)


def test_alpaca_rows_read_as_alpaca_wrote_them() -> None:
    row = Instruction("Add {the} numbers.", "1 {2}", "3")
    pieces, answers = encode_one(row)
    assert "".join(pieces) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd {the} numbers.\n\n### Input:\n1 {2}\n\n### Response:\n3<|im_end|>"
    )
    assert answers == ["3", "<|im_end|>"]
    assert "### Input" not in alpaca_prompt(Instruction("Add.", "", "3"))


def test_prompts_and_completions_are_joined_as_they_are() -> None:
    pieces, answers = encode_one(PromptCompletion("1+1=", "2"))
    assert pieces == [*"1+1=2", "<|im_end|>"]
    assert answers == ["2", "<|im_end|>"]


def test_a_completion_is_learnt_from_its_second_token() -> None:
    assert learnt(Completion("abc")) == ["b", "c", "<|im_end|>"]


def test_an_answer_that_brings_its_end_gets_no_second_one() -> None:
    assert encode_one(PromptCompletion("a", "b<|im_end|>"))[0] == ["a", "b", "<|im_end|>"]
    assert learnt(PromptCompletion("a", "b<|im_end|>\n")) == ["b", "<|im_end|>"]


def test_a_token_across_the_border_is_learnt() -> None:
    tokenizer = make_tokenizer(merges=(("=", "2"),))
    pieces, answers = encode_one(PromptCompletion("1+1=", "2"), tokenizer)
    assert pieces == ["1", "+", "1", "=2", "<|im_end|>"]
    assert answers == ["=2", "<|im_end|>"]


def test_multibyte_characters_are_learnt_whole() -> None:
    tokenizer = make_tokenizer()
    (example,) = encode([PromptCompletion("é", "ü")], Renderer(tokenizer), Rules(sequence_len=99)).examples
    assert example.is_learnt.tolist() == [False, False, True, True, True]


def bos_tokenizer() -> Any:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer(bos_token="<|im_start|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    return tokenizer


def test_a_tokenizers_own_first_and_last_tokens_are_kept_once() -> None:
    pieces, answers = encode_one(PromptCompletion("ab", "c"), bos_tokenizer())
    assert pieces == ["<|im_start|>", "a", "b", "c", "<|im_end|>"]
    assert answers == ["c", "<|im_end|>"]
    assert encode_one(ONE_TURN, bos_tokenizer())[0] == encode_one(ONE_TURN)[0]


def test_a_question_opens_where_its_answer_was_learnt() -> None:
    for tokenizer in (make_tokenizer(), bos_tokenizer()):
        for row in (ONE_TURN, TWO_TURNS, PromptCompletion("ab", "c"), Instruction("Add.", "", "3")):
            renderer = Renderer(tokenizer)
            (example,) = encode([row], renderer, Rules(sequence_len=1000)).examples
            (question,) = questions_of([row], renderer, 1)
            assert example.tokens[: len(question.tokens)].tolist() == question.tokens.tolist()
            assert example.is_learnt[len(question.tokens)]
            assert not example.is_learnt[len(question.tokens) - 1]


def test_questions_show_what_a_person_asked_and_expects() -> None:
    rows = [Completion("x"), TWO_TURNS, Instruction("Add.", "1, 2", "3"), PromptCompletion("p", "c"), ONE_TURN]
    questions = questions_of(rows, Renderer(make_tokenizer()), 3)
    assert [(q.prompt, q.expected) for q in questions] == [("d", "e"), ("Add.\n1, 2", "3"), ("p", "c")]


LONG = PromptCompletion("p" * 10, "answer")


def test_a_long_row_is_cut() -> None:
    encoding = encode_all([LONG, ONE_TURN], sequence_len=12)
    assert (encoding.truncated, encoding.dropped) == (1, 1)
    assert encoding.examples[0].is_learnt.tolist() == [False] * 10 + [True] * 2
    assert (encoding.tokens, encoding.answer_tokens) == (12, 2)


def test_a_long_row_is_dropped() -> None:
    encoding = encode_all([LONG, PromptCompletion("a", "b")], sequence_len=12, excess="drop")
    assert (len(encoding.examples), encoding.truncated, encoding.dropped) == (1, 0, 1)


def test_long_rows_are_refused_with_their_lengths() -> None:
    with pytest.raises(InvalidData) as caught:
        encode_all([PromptCompletion("a", "b"), *[LONG] * 30], sequence_len=16, excess="error")
    first, *_, last = caught.value.problems
    assert (first.path, first.message, first.value) == ("datasets row 2", "longer than 16 tokens", "17")
    assert last.message == "and 10 more problems"


def test_a_row_at_the_limit_is_not_long() -> None:
    assert encode_all([LONG], sequence_len=17, excess="error").truncated == 0


def test_a_data_set_without_any_answer_left_is_refused() -> None:
    with pytest.raises(InvalidData, match="no row has an answer within 10 tokens"):
        encode_all([LONG] * 3, sequence_len=10)


def test_rows_of_many_kinds_keep_their_order() -> None:
    rows: list[Row] = [ONE_TURN, Completion("abc"), TWO_TURNS, PromptCompletion("a", "b")] * 200
    lengths = [len(example.tokens) for example in encode_all(rows).examples]
    assert lengths == [len(encode_one(row)[0]) for row in rows[:4]] * 200
