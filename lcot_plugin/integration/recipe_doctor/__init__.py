"""`lcot doctor RECIPE`: will this run work, and what will it need? Asked before hours of a GPU are spent on it.

In:  a run's YAML file with `key=value` overrides. Out: printed findings; 1 where something is wrong.

    settings.py   arguments, files that they name, batch arithmetic                  nothing is loaded
    sets.py       the data sets: entries and files; then records, lengths, golds     tokenizer and data
    shape.py      the model without weights, as LLaMA-Factory would tune it          configuration
    memory.py     peak memory of each phase, by a run of it on tensors without data
    speed.py      the least that a step takes on this machine's device

What is not on this machine is not downloaded unless asked for; weights never are.
"""
