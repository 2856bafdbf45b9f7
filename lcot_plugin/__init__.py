"""Long chain-of-thought SFT and GRPO with verifiable rewards for small vision-language models, in LLaMA-Factory.

Importing this package is free: no torch, no transformers, no llamafactory.
"""

__version__ = "0.1.0"
