"""What scripts/chaos.py is made of: jobs, what strikes them, and what must come of it."""
