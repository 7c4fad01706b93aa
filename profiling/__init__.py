"""What exits cost and what they buy."""
