"""How mini-MARS is drawn: people, cameras, what goes wrong, and the truth about every pixel."""
