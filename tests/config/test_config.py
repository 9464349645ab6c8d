"""Composition: everything shipped composes and checks; Hydra's traps; what is refused."""

from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from neat_bench.config import CONFIGS, Config, build, compose, load_named, plain
from neat_bench.errors import InputError
from neat_bench.results.tables import TableSpec


def choices(group):
    folder = CONFIGS / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("[!_]*.yaml"))


ONE_OF_EACH_KIND = ("packaged/gloss_polarity", "packaged/mnist5k", "packaged/chain_sum")
# what a method adds to a composition is the same for every data set of a kind; its recipes are met by the others
PAIRS = [
    (method, dataset) for method in choices("method") for dataset in choices("dataset")
    if method in ("neat", "lora") or dataset in ONE_OF_EACH_KIND
    or (CONFIGS / "recipe" / method / f"{dataset}.yaml").exists()
]  # fmt: skip


@pytest.mark.parametrize(("method", "dataset"), PAIRS)
def test_methods_compose_with_data_sets(method, dataset):
    config = build(compose([f"method={method}", f"dataset={dataset}"]))
    assert isinstance(config, Config)
    assert (config.method.name, config.dataset.name) == (method.replace("/", "_"), dataset)


@pytest.mark.parametrize("group", ["model", "optimizer", "scheduler", "protocol", "logger", "launcher"])
def test_every_choice_composes_and_carries_its_files_name(group):
    for choice in choices(group):
        assert getattr(build(compose([f"{group}={choice}"])), group).name == choice


def test_the_trainer_presets_compose():
    for choice in choices("trainer"):
        assert build(compose([f"trainer={choice}"])).trainer.epochs > 0


@pytest.mark.parametrize("name", choices("experiment"))
def test_every_preset_composes_its_whole_grid_and_opens_with_its_command(name):
    text = (CONFIGS / "experiment" / f"{name}.yaml").read_text()
    assert f"# python run.py experiment={name}" in text
    assert "@" not in text.replace("@package _global_", "")
    preset = yaml.safe_load(text)
    params = preset["hydra"]["sweeper"]["params"]
    assert "seed" in params
    assert preset["hydra"]["mode"] == "MULTIRUN"
    parser = OverridesParser.create()
    grid = {key: parser.parse_override(f"{key}={value}") for key, value in params.items()}
    values = {key: [str(v) for v in o.sweep_iterator()] if o.is_sweep_override() else [str(o.value())]
              for key, o in grid.items()}  # fmt: skip
    for key, options in values.items():
        for option in options:
            build(compose([f"experiment={name}", f"{key}={option}"]))


def test_every_table_is_valid():
    methods = set(choices("method"))
    for name in choices("table"):
        spec = load_named(TableSpec, "table", name)
        assert set(spec.rows) <= methods
        assert set(spec.published_tasks) <= set(spec.columns)


def test_every_recipe_belongs_to_a_method_and_changes_known_keys():
    methods = set(choices("method"))
    for name in choices("recipe"):
        method = name.removeprefix("by_model/").split("/")[0]
        assert method in methods
        build(compose([f"method={method}", f"recipe@_global_={name}"]))


# Hydra 1.3's traps, each of which has cost somebody a day


def test_hydra_is_pinned_below_1_4():
    (line,) = [line for line in requires("neat-bench") if line.startswith("hydra-core")]
    assert "<1.4" in line
    assert ">=1.3.2" in line


def test_a_data_set_chooses_its_model_and_the_command_line_wins():
    assert build(compose(["dataset=glue/rte"])).model.name == "roberta_base"
    assert build(compose(["dataset=glue/rte", "model=minilm_l6"])).model.name == "minilm_l6"


def test_the_recipe_comes_in_by_itself_and_the_command_line_wins():
    assert build(compose(["method=neat", "dataset=glue/sst2"])).optimizer.lr == 5e-3
    assert build(compose(["method=neat", "dataset=glue/sst2", "optimizer.lr=7"])).optimizer.lr == 7
    assert build(compose(["dataset=glue/sst2", "method=neat"])).method.scale == 0.01
    assert build(compose(["method=bitfit", "dataset=glue/sst2"])).optimizer.lr == 1e-3  # no recipe: the method's own


def test_nested_groups_share_their_base():
    for task in choices("dataset"):
        if task.startswith("glue/"):
            assert build(compose([f"dataset={task}"])).dataset.hub.repo == "nyu-mll/glue"


def test_no_folder_or_name_holds_a_time():
    for path in CONFIGS.rglob("*.yaml"):
        assert "${now" not in path.read_text(), path
    composed = compose([])
    assert "outputs/" not in OmegaConf.to_yaml(composed)


def test_keys_added_with_a_plus_do_not_slip_past():
    for override, message in (("+method.rankk=3", "'method.rankk'; did you mean 'rank'"),
                              ("+trainer.epohcs=3", "'trainer.epohcs'; did you mean 'epochs'"),
                              ("+dataset.hub={rep:x}", "dataset.hub"), ("+sead=3", "did you mean 'seed'")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            build(compose([override]))


@pytest.mark.parametrize(("override", "message"), [
    ("method.rank=abc", r"method\.rank: .*'abc'.*Integer"),
    ("method.rank=1.5", r"method\.rank"),
    ("trainer.epochs=null", r"trainer\.epochs"),
    ("optimizer.betas=3", r"optimizer\.betas"),
    ("seed=one", r"seed: 'one' is not of type int"),
    ("seed=-1", "not negative"),
    ("rerun=3", "rerun"),
    ("method._target_=os.system", "not a class of neat_bench"),
    ("method._target_=neat_bench.methods.neat.NEET", "there is no"),
    ("method._target_=neat_bench.methods.neat.NEATMap", "not a configurable class"),
    ("method._target_=neat_bench.training.optimizers.AdamW", "AdamW is not a Method"),
    ("method.targets=[query,query]", "names a role twice"),
    ("method.targets=[]", "is empty"),
    ("method.targets=[nosuch]", "unknown role 'nosuch'"),
    ("method.activation=rellu", "did you mean 'relu'"),
    ("method.dropout=1.0", r"method\.dropout"),
    ("launcher.devices=0", r"launcher\.devices"),
    ("logger.mode=onlin", "did you mean 'online'"),
    ("model.pooling=max", "did you mean 'mean'|valid: mean, native"),
    ("dataset.metric=acc", "unknown metric"),
])  # fmt: skip
def test_values_that_are_refused(override, message):
    with pytest.raises(InputError, match=message):
        build(compose([override]))


def test_plain_data_leaves_out_what_changes_no_number():
    values = plain(build(compose([])))
    assert values["method"]["class"] == "NEAT"
    assert values["optimizer"]["lr"] == 1e-3
    assert not {"paths", "logger", "launcher", "rerun", "seed"} & values.keys()


def test_the_configs_folder_is_the_checkouts():
    assert (Path(__file__).resolve().parents[2] / "configs").samefile(CONFIGS)
