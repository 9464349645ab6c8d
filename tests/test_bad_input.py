"""What is refused or goes wrong: one line that names the cause and the cure, a non-zero exit, nothing half-written."""

import errno
import json
import os
import shutil

import pandas as pd
import pytest


def one_line_error(found):
    code, _, err = found
    lines = [line for line in err.strip().splitlines() if line.strip()]
    assert code == 1
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert len(lines[0]) < 300
    return lines[0]


@pytest.mark.parametrize(("arguments", "message"), [
    ("method=nosuch", "unknown method 'nosuch'; valid: adalora, bitfit"),
    ("method=nea", "unknown method 'nea'; did you mean 'neat'?"),
    ("dataset=glue/sst", "unknown dataset 'glue/sst'; did you mean 'glue/sst2'?"),
    ("metod=neat", "unknown key 'metod'; did you mean 'method'?"),
    ("method.rankk=3", "unknown key 'method.rankk'; did you mean 'rank'?"),
    ("trainer.epohcs=3", "unknown key 'trainer.epohcs'; did you mean 'epochs'?"),
    ("+method.rankk=3", "unknown key 'method.rankk'; did you mean 'rank'?"),
    ("+nosuch=1", "unknown key 'nosuch'"),
    ("method.rank=abc", "method.rank"),
    ("method.rank=0", "method.rank is at least 1, not 0"),
    ("method.rank=100000", "method.rank=100000 is larger than the matrix"),
    ("method.depth=3", "method.depth is an even number"),
    ("method.targets=[nosuch]", "unknown role 'nosuch'; valid: block, key"),
    ("method.targets=[mlp_gate]", "this model has no 'mlp_gate'; it has query, key, value"),
    ("method.layers=7:", "selects none of the model's 6 layers"),
    ("trainer.precision=fp16 trainer.device=cpu", "trainer.precision=fp16 needs a GPU"),
    ("optimizer.lr=-1", "optimizer.lr is not negative"),
    ("trainer.epochs=0", "trainer.epochs is at least 1"),
    ("trainer.batch_size=-3", "trainer.batch_size is at least 1"),
    ("-m dataset=glob(nosuch/*)", "the sweep has no jobs: dataset=glob(nosuch/*) matches nothing"),
    ("-m method=neat,nosuch", "unknown method 'nosuch'"),
    ("-m method.rank=4,0", "method.rank is at least 1"),
    ("method=[neat", "cannot read"),
    ("optimizer=null", "Config group override must be a string"),
    ("model.path=/nosuch", "holds no config.json"),
    ("dataset.files={train:/nosuch.csv,validation:/nosuch.csv} "
     "dataset._target_=neat_bench.data.text.TextClassification", "/nosuch.csv does not exist"),
    ("paths.results=/dev/null/x", "cannot write"),
    ("model.packaged.package=no-such-package", "the package no-such-package is not installed"),
    ("model.packaged.sha256=0123", "is not the file this project knows"),
    ("experiment=nosuch", "unknown experiment 'nosuch'"),
    ("model=nosuch", "unknown model 'nosuch'"),
    ("protocol.name=best", "unknown protocol.name 'best'; did you mean 'best_dev'?"),
    ("seed=-1", "seed is not negative; got -1"),
    ("seed=1.5", "seed: 1.5 is not of type int"),
    ("resume=maybe", "unknown resume 'maybe'; valid: auto, never"),
    ("debug=3", "debug: 3 is not of type bool"),
    ("on_oom=half", "unknown on_oom 'half'; did you mean 'halve'?"),
    ("trainer.workers=-1", "trainer.workers is not negative"),
    ("trainer.clip_norm=0", "trainer.clip_norm is above 0"),
    ("trainer.cache_frozen_prefix=true trainer.compile=true", "exclude each other: turn one off"),
    ("trainer.limit_evaluation=1", "needs items on both sides"),
    ("launcher.processes=0", "launcher.processes is at least 1"),
    ("launcher.name=lsf", "unknown launcher.name 'lsf'; valid: local, ray, slurm"),
    ("dataset.max_length=1", "dataset.max_length is at least 3 tokens"),
    ("dataset.metric=acc", "unknown metric 'acc'"),
    ("budget=much", "budget"),
    ("budget=1", "the nearest neat can is 9,216 (rank 1)"),
    ("model.quantization=3bit", "unknown model.quantization '3bit'"),
    ("start_from=/nosuch", "/nosuch"),
    ("method=model_projection", "model_projection"),
    ("method=peft/oft +method.config.nosuch=1", "unexpected keyword argument 'nosuch'"),
    ("method.name=../../x", "method.name: '../../x' is not a plain name"),
    ("model.name=/tmp/x", "model.name: '/tmp/x' is not a plain name"),
    ("dataset.name=../x", "dataset.name: '..' is not a plain name"),
    ("hydra.run.dir=/tmp/x", "hydra.run.dir is fixed: paths.* say where a run writes"),
    ("+hydra.callbacks.x._target_=os.system", "+hydra.callbacks.x._target_ is fixed"),
    ("method._target_=os.system", "'os.system' is not a class of neat_bench"),
    ("method._target_=neat_bench.data.text.TextClassification", "TextClassification is not a Method"),
    ("method._target_=neat_bench.files.write_whole", "'neat_bench.files.write_whole' is not a configurable class"),
    ("method=peft/oft method.config._target_=os.system", "names a config class of peft"),
    ("model.path=${nosuch}", "nosuch"),
])  # fmt: skip
def test_bad_input_ends_in_one_line(command, tmp_path, arguments, message):
    extra = [] if "paths.results" in arguments else [f"paths.results={tmp_path}"]
    paths = [*extra, f"paths.cache={tmp_path}/cache", f"paths.logs={tmp_path}/logs"]
    assert message in one_line_error(command(*arguments.split(), "logger=none", *paths))
    assert not list(tmp_path.rglob("*.json"))


def write_glue(folder, frame, split):
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(folder / f"{split}.parquet")


@pytest.mark.parametrize(("column", "values", "message"), [
    ("text", ["a", "b"], "no column 'sentence'; it has text, label"),
    ("sentence", [], "split train: no rows"),
    ("sentence", ["a", "b"], "label 7 is not 0 to 1"),
])  # fmt: skip
def test_bad_parquet_ends_in_one_line(command, tmp_path, column, values, message):
    frame = pd.DataFrame({column: values, "label": [7] * len(values)})
    for split in ("train", "validation"):
        write_glue(tmp_path / "glue" / "sst2", frame, split)
    found = command("dataset=glue/sst2", "logger=none", f"paths.data={tmp_path}", f"paths.results={tmp_path}/r")
    assert message in one_line_error(found)


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


FULL = "No space left on device"


def copied(folder, to):
    shutil.copytree(folder, to)
    return to


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def model_without_weights(folder, _):
    (folder / "model.safetensors").unlink()
    return [f"model.path={folder}"], "no file named model.safetensors"


def model_cut_short(folder, _):
    cut(folder / "model.safetensors")
    return [f"model.path={folder}"], "give model.path another folder"


def model_with_a_broken_config(folder, _):
    (folder / "config.json").write_text("{")
    return [f"model.path={folder}"], "cannot load the model"


def model_with_a_broken_tokenizer(folder, _):
    (folder / "tokenizer.json").write_text("[]")
    return [f"model.path={folder}"], "cannot load the model"


def model_with_pickled_weights(folder, _):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return [f"model.path={folder}"], "safetensors"


def record_on_a_full_disk(_, monkeypatch):
    monkeypatch.setattr("pandas.DataFrame.to_parquet", full_disk)
    return [], FULL


def checkpoint_on_a_full_disk(_, monkeypatch):
    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    return ["checkpoint.every=1"], FULL


def encoded_rows_on_a_full_disk(_, monkeypatch):
    monkeypatch.setattr("datasets.Dataset.map", full_disk)
    return [], FULL


def cache_that_cannot_be_written(_, __):
    return ["paths.cache=/dev/null/x"], "set paths.cache to a folder that can be written"


def checkpoints_that_cannot_be_written(_, __):
    return ["paths.logs=/dev/null/x", "checkpoint.every=1"], "cannot write"


def rename_that_fails(_, monkeypatch):
    monkeypatch.setattr("os.replace", full_disk)
    return [], FULL


def weights_that_diverge(_, __):
    return ["method=full", "optimizer.lr=1e30", "trainer.clip_norm=null", "trainer.log_every=1"], "lower optimizer.lr"


def memory_that_is_not_there(_, monkeypatch):
    import torch

    from neat_bench.tasks.classification import ClassificationTask

    def out_of_memory(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(ClassificationTask, "loss", out_of_memory)
    return [], "set on_oom=halve"


def adapter_of_another_method(folder, _):
    from safetensors.torch import save_file
    from torch import zeros

    save_file({"x": zeros(1)}, folder / "adapter.safetensors")
    return [f"start_from={folder}"], "is of another model or method"


def adapter_cut_short(folder, _):
    (folder / "adapter.safetensors").write_bytes(b"123")
    return [f"start_from={folder}"], "cannot read"


def table_cut_short(folder, _):
    file = folder / "train.parquet"
    pd.DataFrame({"review": ["a"] * 100, "stars": ["up"] * 100}).to_parquet(file)
    cut(file)
    return [f"dataset.files.train={file}"], "cannot be read as parquet"


def table_of_another_kind(folder, _):
    return [f"dataset.files.train={folder}/config.json"], "cannot be read as json"


def label_that_is_not_one(folder, _):
    (folder / "train.csv").write_text("review,stars\ngood,sideways\n")
    return [f"dataset.files.train={folder}/train.csv"], "label 'sideways' is not 0 to 1 or one of down, up"


def text_that_is_missing(folder, _):
    (folder / "train.csv").write_text("review,stars\n1,up\n2,down\n")
    return [f"dataset.files.train={folder}/train.csv"], "review is not a text (1)"


@pytest.mark.parametrize("fault", [
    model_without_weights, model_cut_short, model_with_a_broken_config, model_with_a_broken_tokenizer,
    model_with_pickled_weights, record_on_a_full_disk, checkpoint_on_a_full_disk, encoded_rows_on_a_full_disk,
    cache_that_cannot_be_written, checkpoints_that_cannot_be_written, rename_that_fails, weights_that_diverge,
    memory_that_is_not_there, adapter_of_another_method, adapter_cut_short, table_cut_short, table_of_another_kind,
    label_that_is_not_one, text_that_is_missing,
])  # fmt: skip
def test_faults_end_in_one_line_and_leave_nothing_half_written(
    fault, command, tiny_overrides, tiny_folder, tmp_path, monkeypatch
):
    folder = copied(tiny_folder, tmp_path / "copy")
    extra, message = fault(folder, monkeypatch)
    assert message in one_line_error(command(*tiny_overrides, "method=linear_probe", "trainer.max_steps=2", *extra))
    left = [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert [path for path in left if path.suffix != ".parquet"] == []  # items without a record are not a result
    assert not list((tmp_path / "logs").rglob("step-*"))


def test_a_damaged_cache_is_made_anew(command, tiny_overrides, tmp_path):
    arguments = [*tiny_overrides, "method=linear_probe", "trainer.max_steps=2"]
    assert command(*arguments)[0] == 0
    record = lambda: next((tmp_path / "results").rglob("seed0.json"))  # noqa: E731
    before = json.loads(record().read_text())
    for file in (tmp_path / "cache" / "encoded").glob("*.arrow"):
        cut(file)
    code, _, err = command(*arguments, "rerun=true")
    assert code == 0, err
    assert "is damaged and made anew" in err
    assert json.loads(record().read_text())["history"] == before["history"]


def test_a_damaged_converted_model_says_what_to_remove(command, tmp_path):
    from neat_bench.models.dinov2_onnx import Dinov2FromOnnx as Model

    folder = tmp_path / "cache" / "models" / f"dinov2_s-{Model.sha256[:12]}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "dinov2"}')
    (folder / "model.safetensors").write_bytes(b"123")
    found = command("dataset=packaged/digits", "model=dinov2_s", "logger=none", f"paths.cache={tmp_path}/cache",
                    f"paths.results={tmp_path}/r", f"paths.logs={tmp_path}/l")  # fmt: skip
    assert "remove that folder: it is made anew" in one_line_error(found)


def test_a_damaged_record_is_named_and_the_run_repeated(command, tiny_overrides, tmp_path):
    arguments = [*tiny_overrides, "method=linear_probe", "trainer.max_steps=2"]
    assert command(*arguments)[0] == 0
    (record,) = (tmp_path / "results").rglob("seed0.json")
    whole = json.loads(record.read_text())
    cut(record)
    with pytest.warns(UserWarning, match="the run is repeated"):
        assert command(*arguments)[0] == 0
    assert json.loads(record.read_text())["history"] == whole["history"]


def test_debug_shows_the_traceback_and_nothing_else_does(command, tiny_overrides, monkeypatch):
    def breaks(*_):
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr("neat_bench.training.trainer.Trainer.fit", breaks)
    code, _, err = command(*tiny_overrides)
    assert (code, err.strip()) == (1, "error: RuntimeError: nobody foresaw this (debug=true shows where)")
    code, _, err = command(*tiny_overrides, "debug=true")
    assert code == 1
    assert "Traceback" in err
    assert "in breaks" in err
