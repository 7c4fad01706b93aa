"""Exit policies, their fitting, the frontier and the budget controller."""
