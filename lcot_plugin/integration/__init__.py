"""The only room that imports llamafactory: one file per seam, each with an idempotent `apply(module)`.

`lcot_plugin.activation.SEAMS` says which seam patches which LLaMA-Factory module; `contract` says what the seams rely
on and which versions are supported. Importing this package imports nothing else.
"""
