"""Every method of finetuning on one model."""

import torch

from lit_llm.data.examples import Example
from lit_llm.methods.adapter import Adapter
from lit_llm.methods.adapter_v2 import AdapterV2
from lit_llm.methods.full import Full
from lit_llm.methods.ia3 import IA3
from lit_llm.methods.lora import LoRA

METHODS = {
    "full": lambda: Full(),
    "last block": lambda: Full("h.1"),
    "lora": lambda: LoRA(targets="all-linear,head", dropout=0.0),
    "dora": lambda: LoRA(targets="all-linear", dropout=0.0, use_dora=True),
    "adapter": lambda: Adapter(prompt_length=4, start_layer=0),
    "adapter_v2": lambda: AdapterV2(prompt_length=4, start_layer=1),
    "ia3": lambda: IA3(),
}


def documents(vocab_size, n=6):
    """Ragged examples with masked beginnings."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(n):
        length = 12 + 8 * i
        ids = torch.randint(vocab_size, (length,), generator=generator, dtype=torch.int32)
        found.append(Example(ids, torch.arange(length) >= 2))
    return found


def randomize(model, std=0.1):
    """Give every LoRA an effect: B starts at zero."""
    for name, parameter in model.named_parameters():
        if name.endswith("lora.B"):
            torch.nn.init.normal_(parameter, std=std)
