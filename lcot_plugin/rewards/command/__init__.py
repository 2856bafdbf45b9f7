"""`lcot reward`: completions in; tables, words and scored lines out."""
