"""What the scripts share, so that each of them shows its own subject. No script imports another script."""
