"""The exercises by name: `check.nf4_codes(your_function)`."""

from lora_edu.classroom.check.build_nf4 import beside_an_outlier, lloyd_step, table_error
from lora_edu.classroom.check.finetuning import cut_for_data, errors_apart, share_of_gain
from lora_edu.classroom.check.limit import bits_to_the_limit, code_entropy, real_bits
from lora_edu.classroom.check.merge import comes_back, merged_weight, share_kept
from lora_edu.classroom.check.negation import attention_shares, mean_gradient, token_votes
from lora_edu.classroom.check.nf4_error import nf4_codes, nf4_levels, pack_high_first
from lora_edu.classroom.check.rank import delta_weight, directions_used, trainable_count
from lora_edu.classroom.check.real_files import adapter_bytes, selected, sum_of_updates
from lora_edu.classroom.check.real_model import masked_embedding, neighbour_agreement, word_ids
from lora_edu.classroom.check.scaling import adam_first_step, gradient_b, scaling_factor
from lora_edu.classroom.check.second_language import at_temperature, qlora_bytes, stopped_in_time

__all__ = [
    "cut_for_data",
    "errors_apart",
    "share_of_gain",
    "adapter_bytes",
    "selected",
    "sum_of_updates",
    "beside_an_outlier",
    "lloyd_step",
    "table_error",
    "bits_to_the_limit",
    "code_entropy",
    "real_bits",
    "attention_shares",
    "mean_gradient",
    "token_votes",
    "adam_first_step",
    "gradient_b",
    "scaling_factor",
    "comes_back",
    "delta_weight",
    "directions_used",
    "merged_weight",
    "nf4_codes",
    "nf4_levels",
    "pack_high_first",
    "share_kept",
    "masked_embedding",
    "neighbour_agreement",
    "trainable_count",
    "word_ids",
    "at_temperature",
    "qlora_bytes",
    "stopped_in_time",
]
