"""From a graph to a student in one call: recipes, budgets, and what was measured to choose by."""
