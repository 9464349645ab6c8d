"""The benchmark's figures as JSON and as markdown tables; ratios only, since seconds belong to a machine."""

from __future__ import annotations

import re
from typing import Any


def file_name(device: str) -> str:
    """Return a file's stem for a device, such as cpu-x86_64-2-threads."""
    return re.sub(r"[^a-z0-9_]+", "-", device.lower()).strip("-")


def _ratio(figures: dict[str, float], key: str = "time") -> str:
    return f"{figures[key]:.2f} ({figures[f'{key}_low']:.2f} to {figures[f'{key}_high']:.2f})"


def to_markdown(found: dict[str, Any]) -> str:
    """Return the tables of a benchmark file."""
    environment = found["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in sorted(environment["packages"].items()))
    lines = [
        f"# Speed and memory: {environment['device']}",
        "",
        "Ratios; the median over rounds in which the contestants take turns, and in brackets the lowest and highest.",
        "Below 1 is faster or smaller than the reference, which is 1 by definition.",
        "",
        "## One adapted layer: a step of forward, backward and AdamW",
        "",
        "Reference: our LoRA of the same rank. Memory: peak of a step, weights and inputs included. Kept: what forward",
        "keeps for backward, weights and the layer's input apart.",
        "",
    ]
    for layer in found["layers"]:
        shape = layer["shape"]
        lines += [
            f"### {shape['name']}: {shape['inputs']} -> {shape['outputs']}, {shape['tokens']:,} tokens, "
            f"rank {shape['rank']}, {layer['dtype']}, {layer['rounds']} rounds",
            "",
            "| method | time | memory | kept for backward |",
            "|---|---:|---:|---:|",
        ]
        for name, figures in layer["results"].items():
            lines.append(
                f"| {name} | {_ratio(figures)} | {figures['peak_memory']:.3f} | {figures['kept_for_backward']:.2f} |"
            )
        lines.append("")
    lines += ["## A whole training run: one epoch, evaluation apart", ""]
    for runs in found["runs"]:
        title = f"{runs['model']}, {runs['dataset']}, {runs['precision']}, {runs['rounds']} rounds"
        for rows, part in runs["rows"].items():
            lines += [f"### {title}, {rows}: {part['items']:,} items, {part['tokens']:,} tokens", ""]
            lines += ["| loop and method | time |", "|---|---:|"]
            lines += [f"| {name} | {_ratio(figures)} |" for name, figures in part["ratios"].items()]
            lines.append("")
    lines += [f"Packages: {packages}.", ""]
    return "\n".join(lines)
