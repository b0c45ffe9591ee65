"""Networks: torch, timm and diffusers, and nothing of the rest of the program."""
