"""Secrets stay out of what a run leaves behind; only safetensors and plain data are read."""

import json
import re
from pathlib import Path

import pytest

from neat_bench.config import LauncherSettings
from neat_bench.experiment import run
from neat_bench.launchers import RunJob
from neat_bench.secrets import HIDDEN, redacted, redacted_text

ROOT = Path(__file__).resolve().parents[1]
PLANTED = {
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQrStUv",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "DB_PASSWORD": "correct horse battery",
}


@pytest.fixture
def planted(monkeypatch):
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    return PLANTED


@pytest.mark.parametrize(("text", "hidden"), [
    ("token hf_AbCdEfGhIjKlMnOpQrStUv here", "hf_AbCdEfGhIjKlMnOpQrStUv"),
    ("https://me:pa55word@host/x", "pa55word"),
    ("logger.api_key=abcdef123456 method=neat", "abcdef123456"),
    ("ghp_abcdefghijklmnopqrstuvwxyz0123", "ghp_abcdefghijklmnopqrstuvwxyz0123"),
])  # fmt: skip
def test_what_looks_like_a_secret_is_replaced(text, hidden):
    assert hidden not in redacted_text(text)
    assert HIDDEN in redacted_text(text)


def test_what_is_none_stays():
    text = "method=neat trainer.max_steps=3 dataset.max_new_tokens=20 commit 748bbcc2f3a0 https://host/x a@b"
    assert redacted_text(text) == text
    values = {"tokens": 3, "tokens_per_second": 2.5, "padding": ["a", None]}
    assert redacted(values) == values


def everything_under(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            yield path, path.read_bytes().decode(errors="replace")


def test_planted_secrets_are_nowhere_in_what_a_run_leaves(planted, tiny_config, tmp_path, monkeypatch):
    """In the values of the config, by interpolation or by hand, in W&B's config, and in the command line."""
    sent = {}

    class Session:
        summary: dict = {}  # noqa: RUF012

        def log(self, *_, **__):
            pass

        def finish(self):
            pass

    def init(**options):
        sent.update(options)
        return Session()

    monkeypatch.setattr("wandb.init", init)
    overrides = ["logger=wandb", "method=linear_probe", "trainer.save_adapter=true", "trainer.max_steps=1",
                 "dataset.label_name='${oc.env:HF_TOKEN}'", "+dataset.files.test=https://me:pa55word@host/test.csv",
                 "checkpoint.keep=true", "checkpoint.every=1", "model.label=hf_ZyXwVuTsRqPoNmLkJiHg"]  # fmt: skip
    run(tiny_config(*overrides), [*overrides, "x.token=secret-on-the-line"])
    secrets = [*planted.values(), "pa55word", "hf_ZyXwVuTsRqPoNmLkJiHg", "secret-on-the-line"]
    found = [(path, secret) for path, text in everything_under(tmp_path) for secret in secrets if secret in text]
    assert found == []
    assert HIDDEN in json.dumps(sent["config"])
    assert not [secret for secret in secrets if secret in json.dumps(sent, default=str)]


def test_planted_secrets_are_not_in_a_failures_traceback_or_message(planted, tiny_overrides, tmp_path, command):
    overrides = [*tiny_overrides, f"model.path=/nosuch/{planted['HF_TOKEN']}"]
    RunJob(LauncherSettings())(overrides, [])
    (left,) = (tmp_path / "results").rglob("*.failed.txt")
    assert planted["HF_TOKEN"] not in left.read_text()
    _, out, err = command(*overrides)
    assert planted["HF_TOKEN"] not in out + err


def test_the_source_reads_no_pickle_runs_no_remote_code_and_evaluates_no_text():
    forbidden = re.compile(r"\bpickle\b|joblib|torch\.load\((?!.*weights_only=True)|trust_remote_code.{0,4}True"
                           r"|(?<![.\w])(eval|exec)\(|use_safetensors.{0,4}False|yaml\.load\(|os\.system")  # fmt: skip
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        found = forbidden.search(path.read_text())
        assert found is None, f"{path}: {found.group()}"
