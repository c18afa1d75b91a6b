"""What makes a notebook a lesson: predictions before the answer, exercises that check themselves."""

from lora_edu.classroom import check
from lora_edu.classroom.check.engine import TODO
from lora_edu.classroom.predict import predict

__all__ = ["TODO", "check", "predict"]
