"""Where models, texts and benchmarks come from: the hub, this disk, a version of a corpus, or a pinned package.

Importing this is cheap. Resolving a source reads at most this disk, or asks the hub for one commit; fetching downloads
what is missing, checks every hash, and writes files that appear whole or not at all.
"""

from sparsekd.sources.benchmarks import benchmarks_at_hand, fetch_benchmarks, packaged_tasks
from sparsekd.sources.catalogue import catalogue
from sparsekd.sources.corpora import Corpora, CorpusVersion
from sparsekd.sources.models import ResolvedModel, fetch_model, local_checkpoint, model_config, resolve_model
from sparsekd.sources.storage import cache_root
from sparsekd.sources.texts import NO_CORPORA, ResolvedText, corpus_names, fetch_texts, resolve_text

__all__ = [
    "NO_CORPORA",
    "Corpora",
    "CorpusVersion",
    "ResolvedModel",
    "ResolvedText",
    "benchmarks_at_hand",
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
