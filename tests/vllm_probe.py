"""What vLLM computes with a checkpoint, in vLLM's own environment: `python vllm_probe.py CHECKPOINT REQUEST ANSWER`.

REQUEST is JSON with `prompts` (token ids) and `new_tokens`; ANSWER becomes JSON with the log-probabilities of each
prompt's tokens after the first, and the greedy continuation. Imports nothing of sparsekd.
"""

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams

if __name__ == "__main__":
    checkpoint, request, answer = sys.argv[1:]
    wanted = json.loads(Path(request).read_text())
    model = LLM(checkpoint, dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=4)
    greedy = SamplingParams(temperature=0, max_tokens=wanted["new_tokens"], prompt_logprobs=0, ignore_eos=True)
    found = model.generate([{"prompt_token_ids": ids} for ids in wanted["prompts"]], greedy, use_tqdm=False)
    answers = [
        {
            "log_probs": [row[token].logprob for token, row in zip(ids[1:], one.prompt_logprobs[1:], strict=True)],
            "greedy": list(one.outputs[0].token_ids),
        }
        for ids, one in zip(wanted["prompts"], found, strict=True)
    ]
    Path(answer).write_text(json.dumps(answers))
