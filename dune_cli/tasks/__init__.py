"""One file a task: what it predicts (a frozen dataclass) and `predict()`. Tasks do not import each other."""
