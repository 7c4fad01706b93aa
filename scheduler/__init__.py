"""When to stop: exit policies, their fitting, the frontier and the budget controller."""
