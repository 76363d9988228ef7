"""What was asked (nodes), how it will be done (optimize), and what a worker runs (work, transforms)."""
