"""What `sample` keeps of completions, in which format, and which of their steps are right."""
