"""Self-referential distillation: the teacher cache, the losses, the trainer."""
