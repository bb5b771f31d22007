"""Five cameras for demonstrations and tests, with a ground truth."""
