"""What the adapters of the federated example know, side by side: loss and exact answers on the same held-out rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HELD_OUT = Path(__file__).resolve().parents[1] / "arithmetic" / "heldout.jsonl"
BASE = "not at all (base model)"


def measure(model: Path, folders: dict[str, Path]) -> Iterator[tuple[str, float, float]]:
    """Yield the held-out loss of the base model and of each adapter, and the share of questions that they answer exactly."""
    from peft import PeftModel

    import wegeft.method  # noqa: F401 - importing it teaches PEFT the method
    from wegeft.contracts.job import DatasetSpec, EvaluationSpec
    from workers.answer_loss import AnswerLoss
    from workers.base_model import ModelRequest, default_cache, load_base_model
    from workers.data import read_rows
    from workers.evaluate import Answerer, held_out_score
    from workers.layout import find_layout
    from workers.matching import Matcher
    from workers.rendering import Renderer
    from workers.tokenization import Rules, encode, questions_of

    warnings.simplefilter("ignore", FutureWarning)  # PEFT 0.21 still asks transformers under an old name
    base = load_base_model(ModelRequest(base_model=str(model), cache=default_cache()))
    rows, renderer = read_rows(HELD_OUT, DatasetSpec(path=str(HELD_OUT))), Renderer(base.tokenizer, None)
    questions = questions_of(rows, renderer, len(rows))
    examples = encode(rows, renderer, Rules(sequence_len=128, excess="error", learns_inputs=False), "held-out rows").examples

    def figures(answering: Any) -> tuple[float, float]:
        loss = AnswerLoss(answering)
        layout = find_layout(answering, loss, examples)
        answers = Answerer(answering, base.tokenizer, 8, layout.can_pack).answer(questions, lambda: None)
        share = Matcher(EvaluationSpec()).share(answers, [question.expected for question in questions])
        return held_out_score(answering, loss, layout, examples, lambda: None).loss, share

    yield BASE, *figures(base.model)
    for what, folder in folders.items():
        adapted = PeftModel.from_pretrained(base.model, folder)
        yield what, *figures(adapted)
        adapted.unload()
