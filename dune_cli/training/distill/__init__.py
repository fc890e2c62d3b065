"""Distillation of one encoder from several teachers."""
