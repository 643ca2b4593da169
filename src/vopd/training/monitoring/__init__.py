"""What watches a run while it goes on: metrics, guards, accuracy, and what the terminal shows."""
