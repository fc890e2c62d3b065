"""Distillation: losses, teacher norms, data sharing, schedules, and the loop that uses them."""
