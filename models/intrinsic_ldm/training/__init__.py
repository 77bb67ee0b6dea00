"""Training of I-LDM: base model, intrinsic VAE, LoRA."""
