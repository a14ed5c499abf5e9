"""All methods on all families: what trains, what stays, and what a saved result gives back."""

import dataclasses
import json

import pytest
import torch
from lightning.fabric import Fabric
from tiny import rows

from lit_llm.adapters import attach_adapter, write_adapter
from lit_llm.args import EvalArgs, TrainArgs
from lit_llm.checkpoint import load_model
from lit_llm.config import Config
from lit_llm.data import Plan, collate, tokenize_all
from lit_llm.generate import generate
from lit_llm.loss import document_log_probs, next_token_loss
from lit_llm.methods.adapter import Adapter
from lit_llm.methods.adapter_v2 import AdapterV2
from lit_llm.methods.dpo import DPO
from lit_llm.methods.full import Full
from lit_llm.methods.lora import LoRA, merge, switched_off
from lit_llm.model import GPT
from lit_llm.tokenizer import Tokenizer
from lit_llm.train import Objective, fit, make_optimizer

METHODS = {
    "full": lambda: Full(),
    "last block": lambda: Full("h.1,norm"),
    "lora": lambda: LoRA(targets="all-linear,head", dropout=0.0),
    "dora": lambda: LoRA(targets="all-linear", dropout=0.0, use_dora=True),
    "adapter": lambda: Adapter(prompt_length=4, start_layer=0),
    "adapter_v2": lambda: AdapterV2(prompt_length=4, start_layer=1),
}
