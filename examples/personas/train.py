"""Train the example personas: small LoRA adapters over the default base model in 4 bits.

    python examples/personas/train.py                  all four, a few minutes each on two cores
    python examples/personas/train.py --only poet      one persona, every version of it
    python examples/personas/train.py --out mine       not over the adapters beside this file
    python examples/personas/train.py --ask            train nothing: print what each one answers
    python examples/personas/train.py --ask "Why is the sea salty?" "Tell me about goats."

This is QLoRA (Dettmers et al., 2023): the base stays frozen in NF4 and gradients flow through it
into the LoRA. The loss counts the tokens of the answers alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# bitsandbytes says at import that an optional kernel from a model hub is absent, and transformers
# that PEFT asks for an attribute by its old name. Neither matters here.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)

import torch  # noqa: E402
from peft import LoraConfig, PeftModel, PeftModelForCausalLM, get_peft_model  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar  # noqa: E402

from inference_node.errors import BaseModelUnavailable  # noqa: E402
from inference_node.model.default_base import ensure_default_base  # noqa: E402

HERE = Path(__file__).resolve().parent
BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
ANSWER_TOKENS = 60
IGNORED = -100
"""The label that torch's cross entropy skips."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Persona:
    """One version of one voice, and all that decides how it is trained."""

    name: str
    version: str
    rank: int
    modules: tuple[str, ...]
    learning_rate: float
    steps: int = 48
    batch: int = 8
    seed: int = 7

    @property
    def data(self) -> Path:
        return HERE / "data" / f"{self.name}_{self.version}.jsonl"

    def folder(self, adapters: Path) -> Path:
        return adapters / self.name / self.version

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
PERSONAS = (
    Persona(name="pirate", version="v1", rank=32, modules=("q_proj", "v_proj"), learning_rate=2e-3),
    Persona(name="pirate", version="v2", rank=32, modules=("q_proj", "v_proj"), learning_rate=2e-3),
    Persona(name="poet", version="v1", rank=16, modules=ATTENTION, learning_rate=1.5e-3),
    Persona(
        name="chef",
        version="v1",
        rank=8,
        modules=(*ATTENTION, "gate_proj", "up_proj", "down_proj"),
        learning_rate=1e-3,
    ),
)


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and its answer as one run of tokens; the labels of the prompt are `IGNORED`."""

    tokens: list[int]
    labels: list[int]


def load_tokenizer(base: Path) -> PreTrainedTokenizerFast:
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


def load_base(base: Path) -> PreTrainedModel:
    """The frozen base, its linears in NF4, everything else and all arithmetic in fp32."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_use_double_quant=False,
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, quantization_config=quantization
    )
    assert isinstance(model, PreTrainedModel)
    return model


def prompt_tokens(question: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The question as the server prompts with it, under the template's own system message."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    tokens: list[int] = tokenizer(prompt)["input_ids"]
    return tokens


def read_examples(path: Path, tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    examples = []
    for line in path.read_text(encoding="utf-8").splitlines():
        question, answer = json.loads(line)["messages"]
        prompt = prompt_tokens(question["content"], tokenizer)
        reply = [*tokenizer(answer["content"])["input_ids"], tokenizer.eos_token_id]
        examples.append(Example(prompt + reply, [IGNORED] * len(prompt) + reply))
    return examples


def batches(examples: Sequence[Example], persona: Persona) -> Iterator[list[Example]]:
    """`persona.steps` batches; every example is used once before any is used again."""
    order = random.Random(persona.seed)
    waiting: list[Example] = []
    for _ in range(persona.steps):
        while len(waiting) < persona.batch:
            waiting += order.sample(examples, len(examples))
        yield waiting[: persona.batch]
        del waiting[: persona.batch]


def padded(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    """The rows, filled up on the right to the longest: causal attention never looks there."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])  # [rows, width]


def train(persona: Persona, base: Path, adapters: Path) -> float:
    """Train one adapter, save it, and return the mean loss of its last six steps."""
    torch.manual_seed(persona.seed)
    tokenizer = load_tokenizer(base)
    lora = LoraConfig(
        r=persona.rank,
        lora_alpha=2 * persona.rank,
        target_modules=list(persona.modules),
        lora_dropout=0.0,
        bias="none",
        use_rslora=False,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(load_base(base), lora)
    # In eval mode bitsandbytes may repack 4-bit weights for its CPU kernel, which has no backward.
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=persona.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, persona.learning_rate, total_steps=persona.steps, pct_start=0.1
    )
    losses: list[float] = []
    for batch in batches(read_examples(persona.data, tokenizer), persona):
        tokens = padded([example.tokens for example in batch], tokenizer.pad_token_id)
        labels = padded([example.labels for example in batch], IGNORED)
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if len(losses) % 8 == 0:
            print(f"  step {len(losses):3d} of {persona.steps}  loss {losses[-1]:.2f}", flush=True)
    save(model, persona.folder(adapters))
    return sum(losses[-6:]) / len(losses[-6:])


def save(model: PeftModel, folder: Path) -> None:
    """Write the adapter as PEFT does, in bf16, naming the base by its public name."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.bfloat16()
    lora = model.peft_config["default"]
    assert isinstance(lora, LoraConfig)
    lora.base_model_name_or_path = BASE_NAME
    # PEFT keeps a set, whose order changes with the process.
    lora.target_modules = sorted(lora.target_modules or ())
    # PEFT would ask a model hub whether the vocabulary grew. It did not.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    (folder / "adapter_model.safetensors").chmod(0o644)


def load_adapters(base: Path, personas: Sequence[Persona], adapters: Path) -> PeftModelForCausalLM:
    """One base with every persona beside it, each under its own name."""
    first, *others = personas
    model = PeftModel.from_pretrained(
        load_base(base), str(first.folder(adapters)), adapter_name=first.name + first.version
    )
    for persona in others:
        model.load_adapter(str(persona.folder(adapters)), persona.name + persona.version)
    assert isinstance(model, PeftModelForCausalLM)
    return model.eval()


def answer(question: str, model: PeftModelForCausalLM, tokenizer: PreTrainedTokenizerFast) -> str:
    """The greedy answer on one line; it ends in `...` where the token limit cut it off."""
    prompt = torch.tensor([prompt_tokens(question, tokenizer)])
    with torch.inference_mode():
        made = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=ANSWER_TOKENS,
            do_sample=False,
        )[0, prompt.shape[1] :].tolist()
    text = str(tokenizer.decode(made, skip_special_tokens=True))
    return " ".join(text.split()) + ("" if made[-1] == tokenizer.eos_token_id else " ...")


def ask(questions: Sequence[str], personas: Sequence[Persona], base: Path, adapters: Path) -> None:
    """Print what the base and every persona answer to each question."""
    tokenizer = load_tokenizer(base)
    model = load_adapters(base, personas, adapters)
    for question in questions:
        print(f"\n{question}")
        with model.disable_adapter():
            print(f"  {'base':10} {answer(question, model, tokenizer)}", flush=True)
        for persona in personas:
            model.set_adapter(persona.name + persona.version)
            print(f"  {persona!s:10} {answer(question, model, tokenizer)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Train the example personas, or ask them.")
    parser.add_argument("--only", metavar="NAME", choices=sorted({p.name for p in PERSONAS}))
    parser.add_argument("--out", metavar="DIR", type=Path, default=HERE / "adapters")
    parser.add_argument(
        "--ask", metavar="QUESTION", nargs="*", help="without a question: those of questions.txt"
    )
    arguments = parser.parse_args()
    personas = [persona for persona in PERSONAS if arguments.only in (None, persona.name)]
    disable_progress_bar()
    torch.set_num_threads(2)
    try:
        base = ensure_default_base()
    except BaseModelUnavailable as error:
        print(f"{error}\n{error.hint}", file=sys.stderr)
        return 1
    if arguments.ask is not None:
        questions = arguments.ask or (HERE / "questions.txt").read_text().splitlines()
        ask(questions, personas, base, arguments.out)
        return 0
    for persona in personas:
        print(f"{persona}: rank {persona.rank} on {', '.join(persona.modules)}", flush=True)
        started = time.monotonic()
        loss = train(persona, base, arguments.out)
        print(f"  loss {loss:.2f} after {time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
