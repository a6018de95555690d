"""What Hyena learns: its matrices beside attention's, its filters, and how far they reach."""
