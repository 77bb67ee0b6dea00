"""Fine-tuning JoyImage-Edit: a LoRA on the frozen network, through diffusers and accelerate."""
