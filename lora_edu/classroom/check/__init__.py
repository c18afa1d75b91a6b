"""The exercises by name: `check.nf4_codes(your_function)`."""

from lora_edu.classroom.check.nf4_error import nf4_codes, nf4_levels, pack_high_first

__all__ = ["nf4_codes", "nf4_levels", "pack_high_first"]
