"""Write train.jsonl and heldout.jsonl: sums and differences of two numbers, as short conversations.

Run with ``pip install reasoning-gym==0.1.25`` in an environment of its own:  python examples/arithmetic/make.py
"""

import json
from pathlib import Path

import reasoning_gym

TRAIN_ROWS, HELDOUT_ROWS, SEED = 600, 48, 7


def main() -> None:
    """Draw the rows, keep each question once, and write both splits beside this file."""
    rows = reasoning_gym.create_dataset(
        "chain_sum", min_terms=2, max_terms=2, min_digits=2, max_digits=3, seed=SEED, size=2 * (TRAIN_ROWS + HELDOUT_ROWS)
    )
    answers = {row["question"]: row["answer"] for row in rows}
    lines = [
        json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
        for question, answer in answers.items()
    ]
    folder = Path(__file__).parent
    (folder / "train.jsonl").write_text("\n".join(lines[:TRAIN_ROWS]) + "\n")
    (folder / "heldout.jsonl").write_text("\n".join(lines[TRAIN_ROWS : TRAIN_ROWS + HELDOUT_ROWS]) + "\n")


if __name__ == "__main__":
    main()
