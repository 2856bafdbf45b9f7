"""vLLM's side of the rollouts; run by the Python of vLLM's own environment, which knows nothing of this repository.

In: the job of rollouts.py as a file. Out: the seconds of every timed rollout, written to the file that the job names.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any


def main(job: dict[str, Any]) -> None:
    from PIL import Image
    from transformers import AutoConfig
    from vllm import LLM, SamplingParams

    setting, lengths, on_cpu = job["setting"], job["lengths"], job["device"] == "cpu"
    config = AutoConfig.from_pretrained(job["model"])
    generator = random.Random(0)
    prompts: list[dict[str, Any]] = []
    for _ in range(setting["prompts"]):
        number = generator.randint(*setting["text_tokens"])
        ids = [generator.randrange(256) for _ in range(number)]  # bytes, which every tokenizer of the shapes has
        prompt: dict[str, Any] = {}
        if job["pixels"]:
            # One placeholder for the picture: vLLM's processor puts in as many as there are tokens.
            ids[20:20] = [config.vision_start_token_id, config.image_token_id, config.vision_end_token_id]
            size = (job["pixels"], job["pixels"])
            prompt["multi_modal_data"] = {"image": Image.frombytes("RGB", size, generator.randbytes(3 * size[0] ** 2))}
        prompts.append({"prompt_token_ids": ids, **prompt})
    longest = max(map(max, lengths)) + setting["text_tokens"][1] + setting["image_side"] ** 2 // 4
    model = LLM(
        model=job["model"],
        dtype="float32" if on_cpu else "bfloat16",
        max_model_len=longest + 64,
        max_num_seqs=setting["rows"],
        limit_mm_per_prompt={"image": 1},
        enable_prefix_caching=True,
        seed=0,
        **({"enforce_eager": True} if on_cpu else {"gpu_memory_utilization": 0.85}),
    )

    def write(limits: list[list[int]]) -> int:
        """Tokens written, every completion a request of its own length with its tokens' log-probabilities."""
        requests = [(prompt, limit) for prompt, own in zip(prompts, limits, strict=False) for limit in own]
        outputs = model.generate(
            [prompt for prompt, _ in requests],
            [
                SamplingParams(max_tokens=limit, temperature=1.0, ignore_eos=True, detokenize=False, logprobs=0)
                for _, limit in requests
            ],
            use_tqdm=False,
        )
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    write([[8] * setting["group_size"]] * 2)
    seconds = []
    for _ in range(job["repeats"]):
        model.reset_prefix_cache()  # the prompts are as new as they are to the other sides
        started = time.perf_counter()
        written = write(lengths)
        seconds.append(time.perf_counter() - started)
        if written != sum(map(sum, lengths)):
            raise RuntimeError(f"{written} tokens were written, {sum(map(sum, lengths))} were asked for")
    import vllm

    figures = {"seconds": seconds, "tokens": sum(map(sum, lengths)), "vllm": vllm.__version__}
    Path(job["answer"]).write_text(json.dumps(figures))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
