"""Training: fine-tuning, short distillation, evaluation, many processes."""
