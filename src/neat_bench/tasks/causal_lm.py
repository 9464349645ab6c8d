"""Causal language models: supervised fine-tuning on responses, answers by generation or by likelihood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from neat_bench.data.answers import extract_choice, extract_letter, extract_math, same_math
from neat_bench.data.instructions import Instructions
from neat_bench.errors import InputError
from neat_bench.tasks.encoding import cached_map, vocabulary_of
from neat_bench.tasks.packing import pack
from neat_bench.tasks.predictions import Predictions

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

IGNORED = -100  # torch's index of tokens without a loss


@dataclass(frozen=True)
class CausalLM:
    """Next-token cross-entropy on prompt and response, padded on the left.

    A row is the tokens of the template's prompt, the response, and the end-of-sequence token. What exceeds
    max_length is cut from the left of the prompt; a row whose response alone exceeds it is left out.
    """

    spec: Instructions
    tokenizer: Any = None

    auto_class = "AutoModelForCausalLM"
    outputs = 0
    reads_text = True

    def with_tokenizer(self, tokenizer: Any) -> Self:
        """Return the task with the model's tokenizer, which is set to pad on the left."""
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return replace(self, tokenizer=tokenizer)

    predicts_in_one_pass = False  # generation takes many, and by likelihood an item has several rows

    def _prompt(self, row: dict[str, Any]) -> str:
        return self.spec.chosen_template.prompt(row["instruction"], row["input"])

    def _tokens(self, prompt: str, response: str) -> tuple[list[int], int]:
        """Return the tokens of a text and how many of them are prompt (one across the border is response)."""
        encoded = self.tokenizer(prompt + response, return_offsets_mapping=True)
        tokens = self._without_end(encoded["input_ids"])
        ends = [end for _, end in encoded["offset_mapping"]][: len(tokens)]
        return tokens, next((at for at, end in enumerate(ends) if end > len(prompt)), len(tokens))

    def _without_end(self, tokens: list[int]) -> list[int]:
        """Return the tokens without the end-of-sequence token that some tokenizers add by themselves."""
        return tokens[:-1] if tokens and tokens[-1] == self.tokenizer.eos_token_id else tokens

    def _fitted(self, tokens: list[int], prompt: int) -> tuple[list[int], int]:
        """Return the tokens with their prompt cut on the left to fit, and its new length; a leading BOS stays."""
        excess = len(tokens) - self.spec.max_length
        if excess <= 0:
            return tokens, prompt
        start = int(bool(tokens) and tokens[0] == self.tokenizer.bos_token_id)
        return tokens[:start] + tokens[start + excess :], prompt - excess

    def encode(self, rows: Dataset, cache: Path, training: bool) -> Dataset:
        """Return tokenised rows with `length` and `cut` (whether the prompt was).

        Training: `input_ids`, `labels` (-100 where no loss), and with packing `position_ids`. Evaluation: the
        prompt's `input_ids` or, by likelihood, those of prompt and each option, with `starts` (the prompt's
        length in each), and what `decide` needs. Prints how many prompts were cut and rows left out.
        """
        encode = self._training_row if training else self._evaluation_row
        spec = {key: value for key, value in asdict(self.spec).items() if key not in ("files", "hub")}
        content = repr((vocabulary_of(self.tokenizer), spec, training, rows.to_dict()))
        encoded = cached_map(rows, encode, content.encode(), cache)
        cut = sum(encoded["cut"])
        what = "training" if training else "evaluation"
        if cut:
            print(f"{cut} of {len(rows)} {what} prompts were cut on the left to fit {self.spec.max_length} tokens")
        if not training:
            return encoded
        kept = encoded.select(np.flatnonzero(np.asarray(encoded["length"]) > 0))
        if len(kept) < len(encoded):
            print(f"{len(encoded) - len(kept)} training rows are left out: no room for their response in "
                  f"{self.spec.max_length} tokens")  # fmt: skip
        if len(kept) == 0:
            raise InputError(f"no training response fits dataset.max_length={self.spec.max_length} tokens")
        return pack(kept, self.spec.max_length) if self.spec.packing else kept

    def _training_row(self, row: dict[str, Any]) -> dict[str, Any]:
        tokens, prompt = self._tokens(self._prompt(row), self.spec.chosen_template.answer(row["response"]))
        tokens = [*tokens, self.tokenizer.eos_token_id]
        fitted, kept = self._fitted(tokens, prompt)
        if kept < 1:
            return {"input_ids": [], "labels": [], "length": 0, "cut": False}
        masked = kept if self.spec.loss_on == "response" else 0
        labels = [IGNORED] * masked + fitted[masked:]
        return {"input_ids": fitted, "labels": labels, "length": len(fitted), "cut": len(fitted) < len(tokens)}

    def _evaluation_row(self, row: dict[str, Any]) -> dict[str, Any]:
        prompt, kept = self._prompt(row), {name: row[name] for name in ("answer", "kind", "options", "answers")}
        if self.spec.scoring == "generation":
            tokens = self._without_end(self.tokenizer(prompt)["input_ids"])
            fitted, _ = self._fitted(tokens, len(tokens))
            return kept | {"input_ids": fitted, "length": len(fitted), "cut": len(fitted) < len(tokens)}
        responses = [self.spec.response_form.replace("{answer}", option) for option in row["options"]]
        texts = [self.spec.chosen_template.answer(response) for response in responses]
        whole = [self._tokens(prompt, text) for text in texts]
        options = [self._fitted(*each) for each in whole]
        if any(start < 1 for _, start in options):
            raise InputError(f"{self.spec.name}: an option exceeds dataset.max_length={self.spec.max_length} tokens")
        ids, starts = [tokens for tokens, _ in options], [start for _, start in options]
        cut = any(len(tokens) < len(before) for tokens, (before, _) in zip(ids, whole, strict=True))
        return kept | {"input_ids": ids, "starts": starts, "length": max(map(len, ids)), "cut": cut}

    def collator(self, training: bool) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Return a function from rows to a left-padded batch: `input_ids`, `attention_mask` and more.

        Training: `labels`, `id`, `items` (examples) and `keep` (how many last positions have a loss). By likelihood an
        item's options are rows of the batch; `starts` (one a row) and `choices` (options an item) tell them apart.
        """
        import torch

        def collate_training(rows: list[dict[str, Any]]) -> dict[str, Any]:
            width = max(len(row["input_ids"]) for row in rows)
            first = min(_first(row["labels"]) + width - len(row["labels"]) for row in rows)
            batch = {
                "input_ids": _padded([row["input_ids"] for row in rows], width, self.tokenizer.pad_token_id),
                "labels": _padded([row["labels"] for row in rows], width, IGNORED),
                "id": torch.tensor([row["id"] for row in rows]),
                "items": sum(row.get("items", 1) for row in rows),
                # the logits at a position predict the next one
                "keep": min(width, width - first + 1),
            }
            if "position_ids" in rows[0]:
                # without a mask transformers reads the packed examples' borders off the positions; padding
                # becomes an example of its own
                batch["position_ids"] = _padded([row["position_ids"] for row in rows], width, None)
            else:
                batch["attention_mask"] = _padded([[1] * len(row["input_ids"]) for row in rows], width, 0)
            return batch

        def collate_evaluation(rows: list[dict[str, Any]]) -> dict[str, Any]:
            nested = self.spec.scoring == "loglikelihood"
            ids = [tokens for row in rows for tokens in row["input_ids"]] if nested else [r["input_ids"] for r in rows]
            width = max(map(len, ids))
            batch: dict[str, Any] = {
                "input_ids": _padded(ids, width, self.tokenizer.pad_token_id),
                "attention_mask": _padded([[1] * len(tokens) for tokens in ids], width, 0),
                "id": torch.tensor([row["id"] for row in rows]),
            }
            if nested:
                starts = [
                    start + width - len(i) for r in rows for start, i in zip(r["starts"], r["input_ids"], strict=True)
                ]
                batch["starts"] = torch.tensor(starts)
                batch["choices"] = [len(row["input_ids"]) for row in rows]
            return batch

        return collate_training if training else collate_evaluation

    def weight(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return what the batch's mean loss is a mean over: the tokens that have one."""
        return (batch["labels"][:, 1:] != IGNORED).sum()

    def loss(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean cross-entropy over the tokens that have a loss."""
        import torch.nn.functional as F

        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
        keep = batch["keep"]
        logits = model(**inputs, use_cache=False, logits_to_keep=keep).logits[:, :-1].float()
        return F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, -keep:][:, 1:].flatten(), ignore_index=IGNORED)

    def predict(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the generated tokens (batch x new tokens) or the options' mean log-likelihoods (batch x options)."""
        return self._generate(model, batch) if self.spec.scoring == "generation" else self._likelihoods(model, batch)

    def _generate(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return what the model adds to each prompt, greedily, up to the end-of-sequence token."""
        from transformers import GenerationConfig

        # the model's own settings, such as sampling, would fill in what is not set here
        model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.spec.max_new_tokens,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        tokens = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return tokens[:, batch["input_ids"].shape[1] :]

    def _likelihoods(self, model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """Return each option's mean log-likelihood a token; -inf fills items with fewer options."""
        import torch

        starts, choices = batch["starts"], batch["choices"]
        ids, mask = batch["input_ids"], batch["attention_mask"]
        keep = int(ids.shape[1] - starts.min()) + 1
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits[:, :-1].float()
        targets = ids[:, -logits.shape[1] :]
        chosen = torch.log_softmax(logits, dim=-1).gather(-1, targets[..., None])[..., 0]
        positions = torch.arange(ids.shape[1] - logits.shape[1], ids.shape[1], device=ids.device)
        counted = positions[None] >= starts[:, None]
        means = (chosen * counted).sum(1) / counted.sum(1)
        scores = means.new_full((len(choices), max(choices)), -torch.inf)
        for item, part in enumerate(means.split(choices)):
            scores[item, : len(part)] = part
        return scores

    def decide(self, outputs: list[np.ndarray], rows: Dataset) -> Predictions:
        """Return the answers in the generated texts, or the likeliest options, beside the right ones."""
        gold, kinds = rows["answer"][:], rows["kind"][:]
        label, counts = np.asarray(gold, dtype=object), np.array([len(each) for each in rows["options"]])
        options = counts if counts.all() else None
        if self.spec.scoring == "loglikelihood":
            answers = [items[int(scores.argmax())] for items, scores in zip(rows["options"], outputs, strict=True)]
            score = np.array([scores.max() for scores in outputs], dtype=float)
            predicted = np.asarray(answers, dtype=object)
            return Predictions(predicted, label, score, predicted == label, options)
        texts = [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in outputs]
        extracted, correct = [], []
        for text, answer, kind, expected in zip(texts, gold, kinds, rows["answers"], strict=True):
            if kind == "math":
                extracted.append(extract_math(text))
                correct.append(same_math(text, answer))
            else:
                extracted.append(extract_letter(text) if kind == "letter" else extract_choice(text, expected))
                correct.append(extracted[-1] == answer)
        predicted = np.asarray(extracted, dtype=object)
        right = np.asarray(correct, dtype=bool)
        return Predictions(predicted, label, np.full(len(texts), np.nan), right, options, texts)


def _first(labels: list[int]) -> int:
    """Return the position of the first token that has a loss."""
    return next(at for at, label in enumerate(labels) if label != IGNORED)


def _padded(rows: list[list[int]], width: int, fill: int | None) -> torch.Tensor:
    """Return rows x width, filled on the left; None counts up from 0, as positions do."""
    import torch

    return torch.tensor([[*_filling(width - len(row), fill), *row] for row in rows])


def _filling(count: int, fill: int | None) -> list[int]:
    return list(range(count)) if fill is None else [fill] * count
