"""Derived formats and protected aliases on the pages."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from hub import catalog
from infra.database import writing
from tests.hub.test_web import alias_form, check_page
from tests.orchestrator.paged import EVIL, Pages
from tests.orchestrator.samples import new_sqlite
from tests.orchestrator.serving import Site, now
from wegeft.contracts.adapter import WEIGHTS_FILE, AdapterName, AdapterRef, AliasMove
from wegeft.contracts.formats import FormatAttachment


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    """demo/sums with a LoRA that is attached, by somebody whose layers have names that try to be HTML, and a protected alias."""
    engine = new_sqlite(tmp_path_factory.mktemp("pages") / "hub.db")
    pages = Pages(Site(engine))
    pages.publish("demo/sums", "job:1")
    pages.publish("demo/words", "job:2", method="lora")
    name = AdapterName.parse("demo/sums")
    with writing(engine) as connection:
        version = catalog.resolve(connection, AdapterRef(adapter=name))
        files = tuple(entry for entry in version.manifest.files if entry.path.startswith("adapter_"))
        told = {"base_model": version.base_model, "largest_error": 3e-7, "largest_error_layer": EVIL, "layers": 2, "made_by": EVIL}
        attachment = FormatAttachment.model_validate({"files": files, **told})
        catalog.attach_format(connection, version, ("lora", "float32"), attachment, ("ada", now(), now() + timedelta(days=30)))
        catalog.set_alias(connection, name, "prod", AliasMove(version=1), now())
        catalog.protect_alias(connection, name, "prod", now(), is_protected=True)
    yield pages
    engine.dispose()


def test_a_version_shows_its_formats_with_size_and_error_or_how_to_make_them(pages: Pages) -> None:
    with pages.visitor("read") as visitor:
        page = visitor.get("/demo/sums/versions/latest")
        check_page(page)
        for text in (
            "lora, float32",
            "3.0e-07",
            "/demo/sums/versions/1/formats/lora/float32/files/adapter_model.safetensors",
            "--format gguf --attach",
        ):
            assert text in page.text
        answer = visitor.get(f"/demo/sums/versions/1/formats/lora/float32/files/{WEIGHTS_FILE}", headers={"Range": "bytes=0-7"})
        assert (answer.status_code, len(answer.content)) == (206, 8)
        assert visitor.get("/demo/sums/versions/1/formats/mlx/float32/files/x").status_code == 404
        check_page(visitor.get("/demo/words/versions/1"))
        assert "demo/words" not in visitor.get("/?attached=lora").text
    with pages.visitor(None) as stranger:
        assert stranger.get(f"/demo/sums/versions/1/formats/lora/float32/files/{WEIGHTS_FILE}").status_code == 303


def test_a_protected_alias_is_told_and_a_writer_who_moves_it_is_refused(pages: Pages) -> None:
    with pages.visitor("write") as visitor:
        page = visitor.get("/demo/sums")
        check_page(page)
        assert "protected: admins move it" in page.text
        refused = visitor.post("/demo/sums/aliases", data=alias_form(visitor, alias="prod", version="1", expected="1"))
        check_page(refused, 403)
