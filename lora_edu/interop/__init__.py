r"""The ecosystem's files, read and written with NumPy: PEFT's adapters and bitsandbytes' 4-bit weights.

    adapter = read_peft("folder")                 names, ranks, scalings; tensors when they are asked for
    ours = adapter.over(TensorFile("base.safetensors"))         a `LoraAdapter`: forward, merge
    write_peft(to_peft(ours), "other folder")     a folder that PEFT loads

    base = read_bitsandbytes("model.safetensors") 4-bit weights by name, dequantized when they are asked for
    write_bitsandbytes("other.safetensors", {"q_proj.weight": quantize_4bit(W)})     a file that bitsandbytes loads
    inspect(path), quantize_file(path, target), error_report(path)                   whole files, as the command does

The package `safetensors` is imported when a file is opened: `pip install "lora-edu[files]"`.
"""

from lora_edu.interop.bitsandbytes import (
    BitsandbytesFile,
    Weight4bit,
    quantize_4bit,
    read_bitsandbytes,
    write_bitsandbytes,
)
from lora_edu.interop.combine import Combination, combine
from lora_edu.interop.container import TensorFile, TensorInfo
from lora_edu.interop.container_write import write_tensors
from lora_edu.interop.errors import FileFormatError
from lora_edu.interop.inspection import Inspection, inspect
from lora_edu.interop.memory import MemoryReport, TensorMemory, memory_report
from lora_edu.interop.model_file import ErrorReport, FormatError, QuantizedFile, error_report, quantize_file
from lora_edu.interop.peft import PeftAdapter, read_peft, to_peft, write_peft
from lora_edu.interop.peft_config import PeftConfig
from lora_edu.interop.peft_layer import PeftLayer

__all__ = [
    "BitsandbytesFile",
    "Combination",
    "ErrorReport",
    "FileFormatError",
    "FormatError",
    "Inspection",
    "MemoryReport",
    "PeftAdapter",
    "PeftConfig",
    "PeftLayer",
    "QuantizedFile",
    "TensorFile",
    "TensorInfo",
    "TensorMemory",
    "Weight4bit",
    "combine",
    "error_report",
    "inspect",
    "memory_report",
    "quantize_4bit",
    "quantize_file",
    "read_bitsandbytes",
    "read_peft",
    "to_peft",
    "write_bitsandbytes",
    "write_peft",
    "write_tensors",
]
