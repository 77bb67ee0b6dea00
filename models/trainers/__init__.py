"""What a recipe's `system` names: one builder for each. Here and in benchmarks/ systems meet the world."""
