"""What reproduces the paper: cells, recipes, scheduling, tables, claims, pictures, benchmarks."""
