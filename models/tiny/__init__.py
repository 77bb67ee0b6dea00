"""What the tiny presets share: a small image codec, a word-level text encoder, and their shipped weights."""
