"""The published recipes are valid jobs over data in the form that their README makes, and say what they repeat."""

from __future__ import annotations

import io
import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pyarrow import Table, parquet
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cli.preparation import PreparedJob, prepare
from examples.recipes import make
from tests.method.test_counts import LLAMA2_7B, LLAMA3_8B, ROBERTA_BASE
from tests.tiny_models import make_tokenizer
from wegeft.contracts.job import load_spec
from wegeft.method import count_parameters
from workers.adaptation import config_of
from workers.base_model import BaseModel

FOLDER = Path(make.__file__).parent
RECIPES = sorted(path.name for path in FOLDER.glob("*.yaml"))
GLUE = {
    "sst2": {"sentence": "a joy", "label": 1},
    "mrpc": {"sentence1": "He left.", "sentence2": "He went.", "label": 1},
    "cola": {"sentence": "They left us.", "label": 0},
    "qnli": {"question": "Who left?", "sentence": "He left.", "label": 0},
    "rte": {"sentence1": "He left.", "sentence2": "He stayed.", "label": 1},
    "stsb": {"sentence1": "He left.", "sentence2": "He went.", "label": 4.2},
}
COMMONSENSE = {
    "instruction": "Is ice cold?\n\nAnswer format: true/false",
    "input": "",
    "output": "the correct answer is true",
    "answer": "true",
}
PROBLEM = {"instruction": "Two and two?", "input": "", "output": "2 + 2 = 4. The answer is 4", "answer": "4.0"}
METAMATH = {"type": "GSM_Rephrased", "query": "Two and two?", "response": "2 + 2 = 4\n#### 4\nThe answer is: 4"}
GSM8K = {"question": "Two and two?", "answer": "2 + 2 = 4\n#### 4"}
CODE = {"query": "Add.", "answer": "Thus:\n```python\na + b\n```\nwhich adds.\n```\nmore\n```"}
WIZARD = {"instruction": "Greet.", "output": "Hello.", "instruction_zh": "", "output_zh": ""}
SOURCES: dict[str, list[dict[str, Any]]] = {
    "commonsense170k": [COMMONSENSE],
    "commonsense170k_test": [COMMONSENSE],
    "math10k": [PROBLEM],
    "math10k_test": [PROBLEM],
    "metamathqa": [METAMATH | {"type": "MATH_Rephrased"}, METAMATH | {"query": "long " * 600}, METAMATH],
    "gsm8k_test": [GSM8K],
    "codefeedback": [CODE | {"answer": "a + b"}, CODE, CODE],
    "wizardlm": [WIZARD | {"output": "I am sorry."}, WIZARD | {"output": "As an AI, no."}, WIZARD, WIZARD],
}
"""A few rows as the authors of each data set publish them, some of which its recipe leaves out."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the recipes, and with a little of the data of each, made as the README says."""
    root = tmp_path_factory.mktemp("recipes")
    make_tokenizer().save_pretrained(root / "tokenizer")
    for name, rows in SOURCES.items():
        source = root / f"{name}.json"
        source.write_text(json.dumps(rows))
        counting = ["--tokenizer", str(root / "tokenizer")] if make.DATA_SETS[name].tokens else []
        make.main([name, str(source), "--output", str(root / "data"), *counting])
    for task, row in GLUE.items():
        (root / "data" / "glue" / task).mkdir(parents=True)
        for split in ("train", "validation"):
            parquet.write_table(Table.from_pylist([row | {"idx": 0}]), root / "data" / "glue" / task / f"{split}.parquet")
    for name in ("fgvc/cub", "fgvc/nabirds", "fgvc/flowers", "fgvc/dogs", "fgvc/cars", "vtab/cifar"):
        (root / "data" / name).mkdir(parents=True)
        for split in ("train", "test"):
            write_images(root / "data" / name / f"{split}.zip")
    for recipe in RECIPES:
        shutil.copy(FOLDER / recipe, root)
    return root


def write_images(path: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 90, 200)).save(content, "PNG")
    with zipfile.ZipFile(path, "w") as archive:
        for label in ("finch", "wren"):
            archive.writestr(f"{label}/1.png", content.getvalue())


def prepared(folder: Path, recipe: str, *overrides: str) -> PreparedJob:
    return prepare((folder / recipe).read_text(encoding="utf-8"), folder, overrides)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_is_a_valid_job_over_its_data(folder: Path, recipe: str) -> None:
    job = prepared(folder, recipe)
    assert {file.section for file in job.files} >= {"datasets"}
    assert all(file.rows >= 1 for file in job.files)
    assert job.spec.resources.gpus == 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_says_what_it_repeats(recipe: str) -> None:
    head = (FOLDER / recipe).read_text(encoding="utf-8").partition("version: 1")[0]
    assert re.search(r"^# Paper: +\S.*arXiv 2312\.00700 v[345]", head, re.MULTILINE)
    assert re.search(r"^# Published: +\S", head, re.MULTILINE)
    (section,) = re.findall(r'README\.md, "([^"]+)"', head)
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"### {section}\n" in readme
    stem = recipe.removesuffix(".yaml")
    assert f"`{recipe}`" in readme or f"`-{stem.partition('-')[2]}`" in readme


def test_recipes_have_the_published_settings() -> None:
    """Ranks, scales, epochs and rates, once more and by hand."""
    published = {
        "commonsense170k": (64, 2.0, 3, 16, 2e-4, 0.1),
        "commonsense170k-gift": (64, 1.0, 6, 32, 2.5e-4, None),
        "math10k": (64, 2.0, 3, 16, 4e-4, 0.1),
        "metamathqa": (64, 2.0, 1, 32, 2e-5, None),
        "codefeedback": (64, 2.0, 1, 32, 2e-5, None),
        "wizardlm": (64, 2.0, 1, 32, 2e-5, None),
        "glue-rte": (32, 1.0, 30, 64, 5e-4, None),
        "fgvc-flowers": (16, 1.0, 100, 64, 5e-4, None),
        "vtab": (16, 1.0, 100, 64, 1e-3, None),
    }
    for name, settings in published.items():
        spec = load_spec((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
        scale, batch = spec.effective_alpha / spec.effective_rank, spec.micro_batch_size * spec.accumulation_steps
        assert (spec.effective_rank, scale, spec.num_epochs, batch, spec.learning_rate, spec.weight_dropout) == settings, name


@pytest.mark.parametrize(
    ("recipe", "kind", "architecture", "expected"),
    [
        ("commonsense170k", AutoModelForCausalLM, LLAMA3_8B, 3_932_160),
        ("commonsense170k-gift", AutoModelForCausalLM, LLAMA2_7B, 1_048_576),
        ("math10k", AutoModelForCausalLM, LLAMA2_7B, 3_506_176),
        ("metamathqa", AutoModelForCausalLM, LLAMA2_7B, 4_554_752),
        ("glue-mrpc", AutoModelForSequenceClassification, ROBERTA_BASE, 98_304),
    ],
)
def test_recipes_train_as_many_numbers_as_published(recipe: str, kind: Any, architecture: Any, expected: int) -> None:
    spec = load_spec((FOLDER / f"{recipe}.yaml").read_text(encoding="utf-8"))
    with torch.device("meta"):
        base = BaseModel(model=kind.from_config(architecture), tokenizer=None, identity=spec.base_model, commit=None, license=None)
    assert count_parameters(config_of(spec, base), base.model) == expected


def test_another_method_is_one_word_away(folder: Path) -> None:
    (line,) = re.findall(r"^wgctl submit (math10k\.yaml --set .*)$", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    recipe, *options = line.split(" --set ")
    assert prepared(folder, recipe, *options).spec.method == "lora"


def test_rows_are_those_of_the_published_scripts(folder: Path) -> None:
    def rows(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (folder / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]

    assert rows("commonsense170k") == [{"prompt": f"{COMMONSENSE['instruction']}\n", "completion": "the correct answer is true"}]
    assert rows("math10k_test") == [{"instruction": "Two and two?", "output": "4.0"}]
    assert rows("metamathqa") == [{"prompt": "Q: Two and two?\nA: ", "completion": " 2 + 2 = 4\n#### 4"}]
    assert rows("gsm8k_test") == rows("metamathqa")
    assert [row["completion"] for row in rows("codefeedback")] == [" Thus:\n```python\na + b\n```"] * 2
    assert rows("wizardlm")[0]["prompt"].endswith("### Instruction:\nGreet.\n\n### Response:\n")
    assert len(rows("wizardlm")) == 2


def test_long_rows_are_not_kept_unseen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make.main(["metamathqa", str(tmp_path / "absent.json")])
    assert "needs a --tokenizer" in capsys.readouterr().err


def test_the_first_rows_are_taken() -> None:
    made = make.converted(make.DataSet(convert=make.gsm8k, rows=2), ({"question": str(n), "answer": "#### 1"} for n in range(5)))
    assert [row["prompt"] for row in made] == ["Q: 0\nA: ", "Q: 1\nA: "]
