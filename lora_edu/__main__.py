r"""`python -m lora_edu` is `lora-edu`."""

import sys

from lora_edu.cli import main

sys.exit(main())
