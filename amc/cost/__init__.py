"""Exact costs of every policy, their gradients, and the budgets that cap them."""
