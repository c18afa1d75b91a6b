r"""The ecosystem's files, read and written with NumPy: PEFT's adapters in safetensors containers.

    adapter = read_peft("folder")                 names, ranks, scalings; tensors when they are asked for
    ours = adapter.over(TensorFile("base.safetensors"))         a `LoraAdapter`: forward, merge
    write_peft(to_peft(ours), "other folder")     a folder that PEFT loads

The package `safetensors` is imported when a file is opened: `pip install "lora-edu[files]"`.
"""

from lora_edu.interop.combine import Combination, combine
from lora_edu.interop.container import TensorFile, TensorInfo
from lora_edu.interop.container_write import write_tensors
from lora_edu.interop.errors import FileFormatError
from lora_edu.interop.inspection import Inspection, inspect
from lora_edu.interop.peft import PeftAdapter, read_peft, to_peft, write_peft
from lora_edu.interop.peft_config import PeftConfig
from lora_edu.interop.peft_layer import PeftLayer

__all__ = [
    "Combination",
    "FileFormatError",
    "Inspection",
    "PeftAdapter",
    "PeftConfig",
    "PeftLayer",
    "TensorFile",
    "TensorInfo",
    "combine",
    "inspect",
    "read_peft",
    "to_peft",
    "write_peft",
    "write_tensors",
]
