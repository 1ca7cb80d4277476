"""Check a document: every mistake is collected with its place, and none stops the others from being found.

`check.py` goes through the document in this order; each part reads one section or compares what others have read.

| file | holds |
|---|---|
| `check.py` | the order of it all: document -> `Recipe`, or `RecipeErrors` |
| `diagnostics.py` | `Checker`: the mistakes so far, and the small checks that every part makes |
| `secrets.py` | what opens a door has no place in a recipe |
| `loops.py` | stages as they are written, with every loop unrolled into its turns |
| `model.py` | the section `model`: what `base` is, and how models are loaded |
| `template.py` | the word `chat_template` |
| `launch.py` | the word `launch`: accelerate's file, how many processes, which engine |
| `local_paths.py` | what stands outside the recipe: model folders, data files, objects in modules |
| `references.py` | names and plugins written in place -> what they stand for |
| `stages.py` | one stage -> its `StageSpec`: parameters by type, references, `args` by their config class |
| `adapters.py` | which adapters fit which stage |
| `stage_validation.py` | what a stage's own class says of its settings, from facts known before loading |
| `training.py` | what a trainer would refuse when it starts, from arguments, rows and names |
| `order.py` | an order in which the stages can run, or the circle |
| `columns.py` | the columns that stages and rewards need, against those of the data |
| `compatibility.py` | whether each stage gets models that fit together: tokenizer, template, EOS, heads |
"""
