"""Reading MARS, drawing mini-MARS."""
