"""Results folders made here: records with their items, as runs leave them."""

import json

import numpy as np
import pandas as pd


def record(method, task, seed, score, overrides=(), config="aaa", **changes):
    """Return a record of suite s and model M; its validation score is its score unless `validation` is given."""
    validation = changes.pop("validation", score)
    trainable = changes.pop("trainable", 300_386)
    made = {
        "schema": 1, "source": "measured",
        "names": {"suite": "s", "task": task, "model": "m", "model_label": "M", "method": method,
                  "method_label": method.upper()},
        "seed": seed, "overrides": [f"method={method}", f"seed={seed}", *overrides], "metric": "accuracy",
        "results": {"split_validation": {"accuracy": score, "epoch": 2, "step": 20},
                    "best_dev": {"accuracy": score + 0.05, "epoch": 2, "step": 20},
                    "last": {"accuracy": score, "epoch": 2, "step": 20}},
        "history": [{"step": 10 * (k + 1), "epoch": k, "train_loss": 1.0 - 0.3 * k,
                     "whole": {"accuracy": score - 0.1 * (1 - k)}, "report": {"accuracy": score - 0.1 * (1 - k)},
                     "selection": {"accuracy": validation - 0.1 * (1 - k)}} for k in range(2)],
        "parameters": {"trainable": trainable, "head": 386}, "hashes": {"config": config, "data": "d"},
        "config": {"trainer": {"precision": "fp32", "evaluation_batch_size": 64, "limit_train": None},
                   "dataset": {"evaluation_split": "validation"}, "method": {"rank": 8}, "budget": None},
        "cost": {"train_seconds": 10.0 + seed, "peak_memory_bytes": (500 + seed) * 2**20},
        "environment": {"device": "cpu", "code": {"commit": "c0ffee"}}, "flags": [],
        "path": f"nowhere/{method}/{task}/{config}/seed{seed}.json",
    }  # fmt: skip
    for each in overrides:
        key, _, value = each.partition("=")
        group, _, field = key.partition(".")
        made["config"].setdefault(group, {})[field] = value
    return made | changes


def runs(method, scores, task="one", **options):
    return [record(method, task, seed, score, **options) for seed, score in enumerate(scores)]


def write(results, made, items=200):
    """Write a record where a run would, with items of which the right share is answered right."""
    names = made["names"]
    folder = (
        results / "runs" / names["suite"] / names["task"] / names["model"] / names["method"] / made["hashes"]["config"]
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"seed{made['seed']}.json"
    path.write_text(json.dumps({key: value for key, value in made.items() if key != "path"}))
    generator = np.random.default_rng(made["seed"])
    labels, hard = generator.integers(0, 2, items), generator.random(items)
    right = hard < made["results"]["split_validation"]["accuracy"]
    table = {"step": 20, "id": np.arange(items), "part": "report", "label": labels,
             "prediction": np.where(right, labels, 1 - labels), "score": 0.5, "correct": right}  # fmt: skip
    pd.DataFrame(table).to_parquet(path.with_suffix(".items.parquet"), index=False)
    return made | {"path": str(path)}


METHODS = {"linear_probe": (0, 0.70, 5.0), "full": (110_000_000, 0.84, 90.0), "lora": (300_000, 0.85, 40.0),
           "dora": (320_000, 0.853, 55.0), "red": (18_000, 0.82, 35.0), "neat": (300_000, 0.865, 42.0)}  # fmt: skip


def write_grid(results, tasks, rates=("1e-4", "3e-4", "1e-3", "3e-3"), seeds=5, items=200):
    """Write a sweep as a paper's: every method's rates on seed 0, then new seeds at the best one."""
    generator = np.random.default_rng(7)
    for task_index, task in enumerate(tasks):
        for method, (parameters, level, seconds) in METHODS.items():

            def one(rate, seed, penalty, t=task, i=task_index, m=method, p=parameters, s=seconds, score=level):
                found = score - 0.04 * i - penalty + 0.012 * generator.standard_normal()
                made = record(m, t, seed, found, overrides=[f"optimizer.lr={rate}"], config=f"{m}{rate}",
                              validation=found + 0.01 * generator.standard_normal(), trainable=p + 386)  # fmt: skip
                made["cost"] = {"train_seconds": s * (1 + 0.05 * generator.random()), "peak_memory_bytes":
                                (700 + (1500 if m == "full" else 0) + int(s)) * 2**20}  # fmt: skip
                made["names"]["method_label"] = (
                    m.replace("_", " ").capitalize() if "_" in m or m == "full" else m.upper()
                )
                write(results, made, items)
                return made["history"][1]["selection"]["accuracy"]

            tuned = {rate: one(rate, 0, 0.03 * abs(index - 2)) for index, rate in enumerate(rates)}
            best = max(tuned, key=tuned.get)
            for seed in range(1, seeds + 1):
                one(best, seed, 0.0)
