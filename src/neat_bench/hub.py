"""The Hugging Face hub: one quick question before any download, so that no network means no waiting."""

import os

from neat_bench.errors import InputError

TIMEOUT_SECONDS = 5.0


def resolve_revision(repo: str, kind: str, revision: str | None, offline_cure: str) -> str | None:
    """Return the commit of `repo` that answers for `revision` (default branch if None).

    `kind` is "model" or "dataset". With HF_HUB_OFFLINE=1 nothing is asked and None comes back: the
    library then serves its own cache. Raises InputError within seconds when the hub cannot be reached
    or has no such repository; `offline_cure` says how to do without the hub.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return revision
    ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        return ask(repo, revision=revision, timeout=TIMEOUT_SECONDS).sha
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "?"
        raise InputError(
            f"the hub answered {status} for the {kind} {repo}"
            f"{f' at revision {revision}' if revision else ''}: check the name, or log in with `hf auth login` "
            f"if it is gated; {offline_cure}"
        ) from None
    except Exception as error:  # httpx errors of every kind: no route, no name, time-out, TLS
        where = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        raise InputError(
            f"cannot reach the hub at {where} for the {kind} {repo} ({type(error).__name__}): {offline_cure}, "
            "or set HF_HUB_OFFLINE=1 to use what an earlier download left in the cache"
        ) from None
