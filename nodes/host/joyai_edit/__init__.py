"""JoyAI-Image inside ComfyUI: core runs the network, this prepares its inputs and reads its answers."""
