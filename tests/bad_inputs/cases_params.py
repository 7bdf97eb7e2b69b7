"""Wrong presets, checkpoints and adapters of `detris params`; `detris train` checks adapters in the same way."""

from __future__ import annotations

from tests.bad_inputs.case import Case, write

QUERY = "target_modules: [q_proj]"


def adapter(fields: str) -> str:
    """Return the command with these fields of the image encoder's adapter."""
    return f"params tiny --vision_adapter '{{{fields}}}'"


CASES = [
    Case("params without a model", "params", ("expected a preset", "got none", "pass one")),
    Case("params with a model and all", "params tiny --all", ("--all", "got both", "pass one")),
    Case("params of two presets", "params tiny detris-b", ("'detris-b'", "remove it"), code=2),
    Case("params of an unknown preset", "params table2-lra", ("MODEL", "'table2-lra'", "use table2-lora")),
    Case("params of a file", "params photo.png", ("MODEL", "'photo.png'", "choose one of them")),
    Case("params of an empty name", "params ''", ("MODEL", "got ''", "choose one of them")),
    Case("params of a run", "params run", ("MODEL run", "got a run", "pass run/best")),
    Case("params of a dataset", "params data", ("MODEL data", "found no config.json", "check the path")),
    Case(
        "params of a damaged checkpoint", "params x", ("x/config.json", "JSON", "again"), write("x/config.json", "{")
    ),
    Case(
        "params in an unknown format",
        "params tiny --format html",
        ("--format", "text, markdown, csv", "'html'"),
        code=2,
    ),
    Case("params of all with options", "params --all --dropout 0.2", ("--all", "--dropout", "remove it")),
    Case(
        "params of a missing encoder",
        "params tiny --vision_model ./none",
        ("./none", "no such folder", "--vision_model"),
    ),
    Case(
        "params of two text encoders",
        "params tiny --text_model a --text_name_or_path b",
        ("--text_model or --text_name_or_path", "got both", "remove one"),
    ),
    Case(
        "params of an encoder and a config",
        "params tiny --text_model backbones/text --text_config '{model_type: bert}'",
        ("--text_model or --text_config", "got both", "remove one"),
    ),
    # -- adapters
    Case(
        "adapter type for prompts",
        adapter("peft_type: PROMPT_TUNING"),
        ("changes modules", "PROMPT_TUNING", "use another"),
    ),
    Case(
        "adapter type that is unknown",
        adapter("peft_type: LORRA"),
        ("peft_type", "such as LORA", "'LORRA'", "correct"),
    ),
    Case("adapter type of a number", adapter("peft_type: 3"), ("peft_type", "registered with peft", "got 3")),
    Case(
        "adapter of the other encoder",
        adapter("peft_type: TEXT_ADAPTER"),
        ("for image encoders", "TextAdapterConfig", "use"),
    ),
    Case("adapter for language models", adapter("peft_type: SHADOW"), ("SHADOW", "language models", "use LORA")),
    Case("adapter that needs calls", adapter("peft_type: ADALORA"), ("ADALORA", "after each step", "use LORA")),
    Case("adapter without target modules", adapter("peft_type: IA3"), ("vision_adapter", "target_modules", "q_proj")),
    Case(
        "adapter of missing modules",
        adapter("peft_type: LORA, target_modules: [wq]"),
        ("vision_adapter", "'wq'", "not found", "set target_modules", "q_proj"),
    ),
    Case(
        "adapter of missing blocks",
        adapter(f"peft_type: LORA, {QUERY}, layers_to_transform: [77]"),
        ("vision_adapter", "[77]", "not found"),
    ),
    Case(
        "adapter that changes the encoder",
        adapter(f"peft_type: LORA, {QUERY}, init_lora_weights: pissa"),
        ("leaves the weights of the encoder", "init_lora_weights=True"),
    ),
    Case(
        "adapter initialized from data",
        adapter(f"peft_type: LORA, {QUERY}, init_lora_weights: eva"),
        ("eva_config", "EvaConfig", "init_lora_weights=True"),
    ),
    Case(
        "adapter that replicates blocks",
        adapter(f"peft_type: LORA, {QUERY}, layer_replication: [[0, 2], [1, 4]]"),
        ("keeps the 4 blocks", "layer_replication=None"),
    ),
    Case(
        "adapter that is saved in part",
        adapter(f"peft_type: VBLORA, {QUERY}, vector_length: 8"),
        ("saves completely", "vblora_vector_bank", "use another"),
    ),
    Case("adapter rank is huge", adapter(f"peft_type: LORA, r: 10000000, {QUERY}"), ("r=10000000", "at most 16,384")),
    Case("adapter rank is 0", adapter(f"peft_type: LORA, r: 0, {QUERY}"), ("positive integer",)),
    Case(
        "adapter rank is text", adapter(f"peft_type: LORA, r: wide, {QUERY}"), ("r='wide'", "expected int", "correct")
    ),
    Case(
        "adapter scale is infinite",
        adapter(f"peft_type: LORA, lora_alpha: .inf, {QUERY}"),
        ("lora_alpha=inf", "finite"),
    ),
    Case(
        "adapter field is unknown",
        adapter(f"peft_type: LORA, rank: 4, {QUERY}"),
        ("vision_adapter.rank", "LoraConfig"),
    ),
    Case(
        "adapter is a list", "params tiny --vision_adapter '[1]'", ("vision_adapter", "expected dict or None", "[1]")
    ),
    Case(
        "adapter and full tuning",
        "params table2-full --text_adapter.dim 16",
        ("train_backbones=True", "got text_adapter"),
    ),
    Case(
        "width of Compacter",
        adapter("peft_type: COMPACTER, dim: 50"),
        ("phm_dim=4", "divisor of dim=50", "change one"),
    ),
]
