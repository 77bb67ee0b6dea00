"""Training of I-LDM: base, intrinsic VAE, LoRA."""
