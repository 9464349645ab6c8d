"""A whole results folder: tables, figures, ledger, reproduction and the report, the latter in a browser."""

import csv
import json
import re
import shutil
import subprocess
import time
from xml.etree import ElementTree

import pytest
from made import METHODS, runs, write, write_grid

from neat_bench.results.cells import make_cell
from neat_bench.results.comparisons import over_items
from neat_bench.results.publish import publish
from neat_bench.results.reproduction import verdict_of
from neat_bench.results.selection import select
from neat_bench.results.tables import TableSpec

TASKS = {f"t{index}": name for index, name in enumerate(("CoLA", "SST-2", "MRPC", "RTE"))}
SPEC = TableSpec(title="Made up", suite="s", columns=TASKS, rows=list(METHODS), published=["mine"])
PUBLISHED = """suite,model,method,label,params,task,metric,value,std,quoted,source
s,M,neat,NEAT,0.3M,t0,accuracy,86.5,,,mine
s,M,lora,LoRA,0.3M,t0,accuracy,99.0,0.1,,mine
s,M,red,RED,0.02M,t9,accuracy,50.0,,,mine
s,M,gift,GIFT,0.02M,t0,accuracy,80.0,,,mine
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    (folder / "published").mkdir()
    (folder / "published" / "published.csv").write_text(PUBLISHED)
    (folder / "published" / "sources.csv").write_text("source,citation,protocol\nmine,Me 2026,best on the test set\n")
    write_grid(folder, TASKS)
    deep = []
    for depth in (2, 4, 6):
        for method in ("neat", "multiplicative"):
            deep += [
                each | {"config": each["config"] | {"method": {"depth": depth}},
                        "names": each["names"] | {"suite": "deep"}}
                for each in runs(method, [0.8 + depth / 100, 0.81, 0.82], config=f"d{depth}")
            ]  # fmt: skip
    for each in deep:
        write(folder, each)
    ablation = TableSpec(
        title="Depth", suite="deep", columns={"one": "One"}, split_by=["method.depth"], baseline="neat"
    )
    return folder, publish(folder, {"made": SPEC, "depth": ablation}, "split_validation")


def test_every_output_is_there(made):
    folder, found = made
    names = {path.relative_to(folder).as_posix() for path in found.files}
    kinds = ("parameters", "time", "memory", "learning", "ranks")
    assert {f"figures/made_m_{kind}.{ending}" for kind in kinds for ending in ("png", "svg")} <= names
    assert {"figures/depth_m_by-depth.svg", "figures/tuning_s_m.png", "report.html", "tables/all.tex"} <= names
    assert {
        f"tables/{name}.{end}" for name in ("made", "depth", "ledger", "reproduction") for end in ("md", "csv")
    } <= names
    for path in found.files:
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
    assert found.refused == found.empty == []


def test_the_table_says_what_was_tried_tested_and_could_have_been_shown(made):
    text = made[1].markdown["made"]
    for part in (
        "Of every method 4 settings were tried in each column, chosen by validation score over seed 0; new seeds are",
        "better or worse than LORA, paired t over shared seeds, Holm-corrected over the column",
        "Smallest difference from LORA that these seeds could have shown at 80% power",
        "W/T/L: tasks better than LORA", "Friedman's test over tasks",
    ):  # fmt: skip
        assert part in text
    probe = next(line for line in text.splitlines() if line.startswith("| Linear probe"))
    assert probe.count("↓") == 5  # four tasks and their average
    assert "| 0/0/4 | 6.0 |" in probe


def test_the_csv_holds_intervals_and_every_p_value(made):
    folder, _ = made
    lines = list(csv.DictReader((folder / "tables" / "made.csv").open()))
    red = next(line for line in lines if line["method"] == "red" and line["task"] == "t0")
    assert float(red["ci_low"]) < float(red["mean"]) < float(red["ci_high"])
    assert float(red["p_items"]) <= float(red["p_items_holm"]) <= 1
    assert float(red["p_seeds"]) <= float(red["p_seeds_holm"]) <= 1
    assert red["settings_tried"] == "4"
    assert {line["verdict"] for line in lines} >= {"worse", "same"}


def test_the_ledger_counts_every_setting(made):
    folder, _ = made
    lines = list(csv.DictReader((folder / "tables" / "ledger.csv").open()))
    neat = next(line for line in lines if line["method"] == "NEAT" and line["task"] == "t0")
    assert (neat["settings_tried"], neat["tuned_on_seeds"], neat["runs"]) == ("4", "0", "9")
    assert len(neat["expected_of_the_best_of_k"].split()) == 4


def test_published_values_get_a_verdict_and_what_was_not_run_stays_empty(made):
    folder, _ = made
    lines = list(csv.DictReader((folder / "tables" / "reproduction.csv").open()))
    verdicts = {line["method"]: line for line in lines}
    assert verdicts["NEAT"]["verdict"] in ("reproduced", "within noise")
    assert verdicts["LoRA"]["verdict"] == "not reproduced"
    assert (verdicts["GIFT"]["verdict"], verdicts["GIFT"]["measured"]) == ("not run", "")
    assert "RED" not in verdicts  # of a task that the table does not show
    assert float(verdicts["LoRA"]["difference"]) < -10
    assert "best on the test set" in (folder / "tables" / "reproduction.md").read_text()
    assert verdict_of(80, None, 82, 1.0, 81, 83) == "within noise"
    assert verdict_of(80, None, 82, None, 82, 82) == "one seed"


def test_items_are_paired_by_their_id(tmp_path):
    sides = []
    for method, score in (("neat", 0.9), ("lora", 0.5)):
        written = [write(tmp_path, each) for each in runs(method, [score, score])]
        sides.append(make_cell(select(written, "split_validation")))
    assert over_items(*sides, "split_validation") < 1e-6
    assert over_items(sides[0], sides[0], "split_validation") == 1.0
    bare = make_cell(select(runs("red", [0.5]), "split_validation"))
    assert over_items(bare, sides[0], "split_validation") is None


def test_a_refused_table_is_named_and_the_others_are_made(made, tmp_path):
    for each in runs("neat", [0.8], config="a") + runs("neat", [0.9], config="b") + runs("lora", [0.8]):
        write(tmp_path, each)
    found = publish(tmp_path, {"one": TableSpec(title="T", suite="s", columns={"one": "One"})}, "split_validation")
    assert "unequal numbers of settings tried" in found.refused[0]
    assert "unequal numbers of settings tried" in (tmp_path / "report.html").read_text()


def test_figures_that_the_runs_no_longer_give_are_removed(tmp_path):
    spec = TableSpec(title="T", suite="s", columns={"one": "One", "two": "Two", "three": "Three"})

    def figures(task):
        for each in runs("neat", [0.8, 0.9], task) + runs("lora", [0.7, 0.8], task):
            write(tmp_path, each)
        publish(tmp_path, {"a": spec, "a_b": spec}, "split_validation", whole=False)
        return {path.name for path in (tmp_path / "figures").glob("*_time*")}

    ends = ("png", "svg")
    assert figures("one") == {f"{name}_m_time.{end}" for name in ("a", "a_b") for end in ends}
    (tmp_path / "figures" / "mine_time.png").touch()
    drawn = {f"{name}_m_time_{task}.{end}" for name in ("a", "a_b") for task in ("one", "two") for end in ends}
    assert figures("two") == drawn | {"mine_time.png"}


def test_the_report_is_one_file_that_needs_no_network(made):
    folder, _ = made
    text = (folder / "report.html").read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']?https?://|@import|url\(""", text)
    cells = json.loads(re.search(r'id="cells">(.*?)</script>', text, re.S)[1])
    assert len(cells) == 4 * len(METHODS) + 6
    one = next(iter(cells.values()))
    assert len(one["runs"]) == 5
    assert len(one["tried"]) == 4
    assert one["items"]["items"] == 200
    assert len(text) < 2_000_000


def test_latex_compiles_as_it_is(made):
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex")
    folder, _ = made
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"], cwd=folder / "tables",
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.fixture(scope="module")
def browser():
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("no chromium and chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def test_the_report_works_in_a_browser(made, browser):
    folder, _ = made
    browser.get((folder / "report.html").as_uri())
    assert browser.get_log("browser") == []
    table = browser.find_element("css selector", "table.sortable")

    def column(index):
        return [row.find_elements("css selector", "td")[index].text for row in
                table.find_elements("css selector", "tbody tr:not(.published)")]  # fmt: skip

    heading = table.find_elements("css selector", "th button")[3]
    heading.click()
    means = [float(text.split()[0]) for text in column(3)]
    assert means == sorted(means, reverse=True)
    heading.click()
    assert [float(text.split()[0]) for text in column(3)] == sorted(means)
    table.find_elements("css selector", "th button")[1].click()
    assert column(1)[0] == "110M"  # by the number, not by its text
    table.find_element("css selector", "[data-cell]").click()
    dialog = browser.find_element("id", "cell")
    assert dialog.is_displayed()
    for part in ("Selection", "Best of 4 by validation score over seed 0.", "reported items right", "optimizer.lr="):
        assert part in dialog.text
    dialog.find_element("css selector", ".close").click()
    assert not dialog.is_displayed()
    pictures = browser.find_elements("css selector", "figure img")
    assert len(pictures) >= 10
    for picture in pictures:
        browser.execute_script("arguments[0].loading = 'eager'; arguments[0].scrollIntoView()", picture)
    time.sleep(0.5)
    assert all(browser.execute_script("return arguments[0].naturalWidth", picture) > 100 for picture in pictures)
    assert browser.get_log("browser") == []
