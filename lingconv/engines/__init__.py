"""What runs inside an engine's own environment. It imports nothing of lingconv."""
