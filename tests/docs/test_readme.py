"""What the README shows works: its job file, its routes and its Python."""

import re
from pathlib import Path

from examples.arithmetic.demo import JOB_FILE
from tests.orchestrator.federating import Server
from tests.orchestrator.samples import new_sqlite
from tests.tiny_models import make_model, make_model_folder
from wegeft.contracts.job import load_spec

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_job_file_is_valid_and_the_demo_submits_its_sister() -> None:
    (block,) = blocks("yaml")
    shown, real = load_spec(block), load_spec(JOB_FILE.read_text(encoding="utf-8"))
    for field in ("rank", "alpha", "target_modules", "max_steps", "micro_batch_size", "learning_rate", "output"):
        assert getattr(shown, field) == getattr(real, field), field


def test_routes_are_there(tmp_path: Path) -> None:
    engine = new_sqlite(tmp_path / "a.db")
    app = Server(engine).app()
    engine.dispose()
    named = re.findall(r"`(/[\w./]+)`", README)
    assert len(named) == 4
    assert set(named) <= {app.openapi_url, *app.openapi()["paths"]}


def test_python_runs(tmp_path: Path) -> None:
    """The library block makes an adapter, and the other block loads it; only the model's name and the folder's are changed."""
    loading, wrapping = blocks("python")
    model_folder = make_model_folder(tmp_path / "model")
    wrapped: dict[str, object] = {"model": make_model()}
    exec(compile(wrapping, "README.md", "exec"), wrapped)
    wrapped["model"].save_pretrained(tmp_path / "adapter")  # type: ignore[attr-defined]
    loading = loading.replace('"Qwen/Qwen2.5-0.5B-Instruct"', repr(str(model_folder))).replace('"adapter"', repr(str(tmp_path / "adapter")))
    loaded: dict[str, object] = {}
    exec(compile(loading, "README.md", "exec"), loaded)
    assert list(loaded["model"].peft_config) == ["default"]  # type: ignore[attr-defined]
