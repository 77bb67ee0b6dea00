"""What the tiny presets share: a small image codec, a word-level text encoder, and the pictures of the demo."""
