"""The teacher cache: what a student learns from, without the dense model beside it. See docs/method.md."""

from sparsekd.distillation.teacher.cache import TeacherCache
from sparsekd.distillation.teacher.write import write_teacher_cache

__all__ = ["TeacherCache", "write_teacher_cache"]
