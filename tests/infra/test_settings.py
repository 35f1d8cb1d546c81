"""Settings: defaults, every wrong one at once, and no secret shown."""

from pathlib import Path

import pytest

from infra.settings import GROUPS, PREFIX, Settings, load_settings
from wegeft.contracts.errors import InvalidSetting, Problem

SECRET = "s3cr3t-p4ss"


def problems_of(**options: object) -> dict[str, Problem]:
    with pytest.raises(InvalidSetting) as caught:
        load_settings(**options)
    assert SECRET not in str(caught.value) + repr(caught.value) + caught.value.body().model_dump_json()
    return {problem.path: problem for problem in caught.value.problems}


def test_nothing_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEGEFT_HOME", str(tmp_path))
    settings = load_settings()
    assert settings.database == f"sqlite:///{tmp_path}/hub.db"
    assert settings.store_url == f"file://{tmp_path}/blobs"
    assert (settings.pool, settings.port, settings.jobs_at_once) == ("ray", 0, 1)
    assert not settings.allow_local_models
    assert not settings.allow_remote_code


def test_the_home_may_be_below_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEGEFT_HOME", "~/.other")
    assert load_settings().home == Path.home() / ".other"


def test_an_option_goes_before_the_environment_and_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEGEFT_PORT", "7000")
    monkeypatch.setenv("WEGEFT_SERVER", "")
    assert load_settings().port == 7000
    assert load_settings(port=7001, host=None).port == 7001
    assert load_settings().server is None


def test_every_wrong_setting_is_reported_at_once_and_no_secret_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "WEGEFT_SEVER": "http://x",
        "WEGEFT_SERVER": f"http://me:{SECRET}@host",
        "WEGEFT_PORT": "65536",
        "WEGEFT_DATABASE_URL": f"mysql://me:{SECRET}@host/name",
        "WEGEFT_STORE": "s3://",
        "WEGEFT_S3_ENDPOINT": f"http://key:{SECRET}@host",
        "WEGEFT_POOL": "slurm",
        "WEGEFT_LEASE_SECONDS": "soon",
        "WEGEFT_ALLOW_REMOTE_CODE": "maybe",
        "WEGEFT_S3_SECRET": SECRET,
    }
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    found = problems_of()
    assert set(found) == set(wrong)
    assert found["WEGEFT_SEVER"].hint == "did you mean WEGEFT_SERVER?"
    assert found["WEGEFT_S3_SECRET"].hint == "did you mean WEGEFT_S3_SECRET_KEY?"
    assert found["WEGEFT_PORT"].value == "65536"
    assert found["WEGEFT_ALLOW_REMOTE_CODE"].message == "must be true or false"


def test_settings_that_do_not_go_together_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEGEFT_HEARTBEAT_SECONDS", "6")
    monkeypatch.setenv("WEGEFT_STORE", "s3://bucket/prefix")
    monkeypatch.setenv("WEGEFT_RAY_ADDRESS", "head:6379")
    expected = {"WEGEFT_HEARTBEAT_SECONDS", "WEGEFT_S3_ACCESS_KEY", "WEGEFT_S3_SECRET_KEY", "WEGEFT_PUBLIC_URL"}
    assert set(problems_of()) == expected


def test_a_wrong_option_is_named_as_one() -> None:
    assert set(problems_of(port=-1)) == {"--port"}


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:99999", "http://host/path", "host:80", "http://[::1"])
def test_a_server_is_a_plain_url(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEGEFT_SERVER", url)
    assert set(problems_of()) == {"WEGEFT_SERVER"}


@pytest.mark.parametrize("url", ["file://host/x", "file:relative", "memory:", "/plain/path", "s3://"])
def test_a_store_is_a_folder_or_a_bucket(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEGEFT_STORE", url)
    assert set(problems_of()) == {"WEGEFT_STORE"}


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEGEFT_TOKEN", SECRET)
    monkeypatch.setenv("WEGEFT_S3_SECRET_KEY", SECRET)
    monkeypatch.setenv("WEGEFT_DATABASE_URL", f"postgresql+psycopg://me:{SECRET}@host/name")
    settings = load_settings()
    assert SECRET not in repr(settings) + str(settings) + settings.model_dump_json()
    assert SECRET in settings.database


def test_every_setting_is_in_one_group_and_says_what_it_is() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        assert (field.description or "").endswith("."), PREFIX + name
