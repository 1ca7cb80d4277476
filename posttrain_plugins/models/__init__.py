"""Models from folders: one loader, one tokenizer, the adapter stack, and what each adapter type can do.

| module                     | holds                                                                       |
|----------------------------|-----------------------------------------------------------------------------|
| `folder.py`                | what a model folder says: its adapters, the base below them, its task       |
| `load.py`                  | the one way from a folder or Hub id to a model and its tokenizer            |
| `load_report.py`           | transformers' report of missing weights, without what is no alarm           |
| `quantization.py`          | weights in 4 and 8 bits, the same on every processor                        |
| `stack.py`                 | adapters as part of a base: merged, or around weights that are quantized    |
| `merge.py`                 | a plain model without adapters and quantization, and what that changed      |
| `interpolate.py`           | the weighted mean of several whole models                                   |
| `critic.py`                | a saved critic: its value head and the layers that it reads                 |
| `critic_folder.py`         | what is said of a saved critic, read without torch                          |
| `value_form.py`            | how the logits of a value head become values                                |
| `training_templates.py`    | chat templates with the assistant's turns marked, as training needs them    |
| `fused_head.py`            | TRL's fused head with a GPU's memory, where there is none                   |
| `training_memory.py`       | how many bytes training takes, by formula                                   |
| `adapter_types.py`         | what each of PEFT's adapter types can, read without importing PEFT          |
| `adapter_compatibility.py` | which adapter does not fit which stage, why, and what to change             |
| `tuners/`                  | what PEFT lacks: bottleneck adapters, LoRA+, AdaLoRA in any trainer         |
"""
