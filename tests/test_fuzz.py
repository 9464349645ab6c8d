"""Whatever is typed or found in a results folder: an answer or one line, never a traceback."""

import copy
import json
import warnings
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from neat_bench import cli
from neat_bench.config import build, compose, identity
from neat_bench.errors import InputError
from neat_bench.results.record import config_hash
from neat_bench.results.store import read_record, read_records

MANY = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**9), st.floats(), st.text(max_size=12),
    st.lists(st.one_of(st.integers(), st.text(max_size=4)), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)  # fmt: skip


@pytest.fixture(scope="module")
def composed():
    return compose(["logger=none"])


def paths_of(node, prefix=()):
    """Yield the path of every value and of every group."""
    for key, value in node.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from paths_of(value, (*prefix, key))


def refusal(kind, action):
    """Return the message of an expected error, "" where there is none; any other error passes through."""
    try:
        action()
    except kind as error:
        return str(error)
    return ""


@MANY
@given(data=st.data())
def test_any_value_under_any_key_is_taken_or_refused_in_one_line(composed, data):
    values = OmegaConf.to_container(composed)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(sorted(paths_of(values), key=str)))
        node = values
        for key in path[:-1]:
            node = node[key]
        if not isinstance(node, dict):
            continue
        key = data.draw(st.one_of(st.just(path[-1]), st.text("abcdefg_", min_size=1, max_size=6)))
        node[key] = data.draw(VALUES)
    message = refusal(InputError, lambda: json.dumps(identity(build(OmegaConf.create(values)))))
    assert "\n" not in message
    assert len(message) < 300


KEYS = ["method", "method.rank", "trainer.epochs", "seed", "dataset", "hydra.run.dir", "+x", "~method", "optimizer",
        "paths.results", "model.path", "-m", "--cfg", "experiment", "budget"]  # fmt: skip
WORDS = st.sampled_from(KEYS)


@settings(MANY, max_examples=40)
@given(arguments=st.lists(st.tuples(WORDS, st.text(max_size=8)), min_size=1, max_size=3))
def test_any_command_line_ends_without_a_traceback(arguments, tmp_path_factory):
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("fuzz")
    line = [f"{key}={value}" if not key.startswith("-") else key for key, value in arguments]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr("neat_bench.experiment.run", lambda *_: None)  # what is composed is not trained
        patch.setattr("neat_bench.sweep.run_sweep", lambda *_: None)
        patch.setattr("sys.argv", ["run.py", "logger=none", *line])
        GlobalHydra.instance().clear()
        try:
            cli.main()
        except SystemExit:
            pass
        finally:
            GlobalHydra.instance().clear()
    assert "Traceback" not in err.getvalue()
    assert not [path for path in folder.rglob("*") if path.is_file()]


def record_of_a_run():
    return {
        "schema": 1, "source": "measured", "names": {"suite": "s", "task": "t", "model": "m", "method": "x"},
        "config": {"method": {"rank": 8}}, "hashes": {"config": "c"}, "seed": 0, "parameters": {}, "cost": {},
        "results": {"last": {"accuracy": 0.5, "epoch": 1, "step": 1}},
    }  # fmt: skip


@MANY
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode),
                         VALUES.map(lambda value: json.dumps(value).encode())))  # fmt: skip
def test_any_file_among_the_records_is_skipped_with_its_name(content, tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    path = folder / "runs" / "s" / "seed0.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert list(read_records(folder)) == []
    assert any(str(path) in str(each.message) for each in caught)


@MANY
@given(data=st.data())
def test_a_record_with_any_part_replaced_is_read_or_refused_with_a_reason(data, tmp_path_factory):
    record = copy.deepcopy(record_of_a_run())
    path_in = data.draw(st.sampled_from(sorted(paths_of(record), key=str)))
    node = record
    for key in path_in[:-1]:
        node = node[key]
    if data.draw(st.booleans()):
        del node[path_in[-1]]
    else:
        node[path_in[-1]] = data.draw(VALUES)
    path = Path(tmp_path_factory.mktemp("record")) / "seed0.json"
    path.write_text(json.dumps(record))
    message = refusal(ValueError, lambda: read_record(path))
    assert not message or str(path) in message


def test_the_hash_leaves_out_what_has_its_class_default_and_what_changes_no_number():
    base = config_hash(identity(build(compose([]))))
    for same in ("trainer.workers=3", "trainer.log_every=99", "on_oom=halve", "paths.cache=x", "debug=true",
                 "resume=never", "checkpoint.every=7", "launcher.devices=2", "trainer.save_adapter=false"):  # fmt: skip
        assert config_hash(identity(build(compose([same])))) == base
    for other in ("trainer.save_adapter=true", "trainer.batch_size=31", "method.rank=7", "seeds.order=1", "budget=1M"):
        assert config_hash(identity(build(compose([other])))) != base
