"""Training: a loop that resumes to the bit, and the tasks it trains."""
