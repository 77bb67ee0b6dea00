"""Dataset folders of I-LDM: read, built with a running ComfyUI, encoded."""
