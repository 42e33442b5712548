"""The short model card inside a distilled checkpoint; the long one with results is the report's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsekd.config import Distill


def write_card(checkpoint: Path, pruned: dict[str, Any], config: Distill) -> None:
    """Write README.md beside the weights: what this is, and how to load it. `pruned` are the prune stage's facts."""
    width, removed = pruned["intermediate_size"], pruned["reduction"]
    divergence = {"forward_kl": "KL", "reverse_kl": "reverse KL", "jsd": "Jensen-Shannon"}[config.divergence]
    (checkpoint / "README.md").write_text(
        f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [sparsekd, structured-pruning, self-distillation]
---

# A pruned and self-distilled checkpoint

Made by sparsekd: `intermediate_size` {width["dense"]} → {width["pruned"]} by structured pruning, then distilled from
its own distribution before compression ({divergence} share {config.alpha:g}, temperature {config.temperature:g}).
Removed: {removed["ffn"]:.1%} of the feed-forward, {removed["non_embedding"]:.1%} of the non-embedding and
{removed["total"]:.1%} of all parameters. The results are in the report's model card.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
```
""",
        encoding="utf-8",
    )
