"""Models from folders: one loader, one tokenizer, the adapter stack, and what each adapter type can do."""
