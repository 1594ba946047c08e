"""Greedy tokens of a model through transformers: attn_implementation="fulmen" gives those of its own sdpa.

With FULMEN_MODEL (a GGUF file) and the package gguf: that model; always: small random ones. On a GPU where there is one."""
import os
import pathlib

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.masking_utils", reason="transformers 4.53 or newer")
import fulmen.transformers  # noqa: E402, F401

DEVICE, DTYPE = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)


def tokens(model, implementation, **inputs):
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        return model.generate(**inputs, max_new_tokens=24, do_sample=False, pad_token_id=0)


def assert_same(model, **inputs):
    """Greedy tokens of sdpa. In 16 bits a row may go another way where sdpa's two best logits are a tie."""
    ours, theirs = tokens(model, "fulmen", **inputs), tokens(model, "sdpa", **inputs)
    if DTYPE == torch.float32:
        assert torch.equal(ours, theirs)
    start = inputs["input_ids"].shape[1]
    for row in range(len(theirs)):
        n = min(ours.shape[1], theirs.shape[1])
        differ = (ours[row, :n] != theirs[row, :n]).nonzero()
        if len(differ) == 0:
            continue
        at = int(differ[0])
        assert at >= start
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))[row:row + 1]
        ids = theirs[row:row + 1, :at]
        mask = torch.cat([mask, mask.new_ones(1, at - start)], 1)
        with torch.no_grad():
            logits = model(ids, attention_mask=mask).logits[0, -1].float()
        best = logits.topk(2).values
        assert best[0] - best[1] < 1e-2 * (logits.max() - logits.min()), (row, at, best)
    return ours


def small(kind, config, **options):
    torch.manual_seed(0)
    sizes = dict(vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=8,
                 num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    return kind(config(**sizes, **options)).eval().to(DEVICE, DTYPE)


def one():
    return {"input_ids": torch.arange(3, 43, device=DEVICE)[None]}


def padded():
    torch.manual_seed(1)
    ids = torch.randint(3, 300, (3, 20))
    mask = torch.ones_like(ids)
    for row, n in enumerate((0, 7, 15)):  # on the left
        ids[row, :n], mask[row, :n] = 0, 0
    return {"input_ids": ids.to(DEVICE), "attention_mask": mask.to(DEVICE)}


@pytest.mark.parametrize("inputs", [one(), padded()], ids=["one", "padded"])
def test_llama(inputs):
    model = small(transformers.LlamaForCausalLM, transformers.LlamaConfig)
    assert_same(model, **inputs)


def test_padding_is_seen():
    """A mask that was ignored would change the tokens."""
    model, inputs = small(transformers.LlamaForCausalLM, transformers.LlamaConfig), padded()
    alone = tokens(model, "fulmen", input_ids=inputs["input_ids"][2:, 15:])
    assert torch.equal(tokens(model, "fulmen", **inputs)[2, 20:], alone[0, 5:])


def test_sliding_window():
    model = small(transformers.MistralForCausalLM, transformers.MistralConfig, sliding_window=6)
    for inputs in (one(), padded()):
        assert_same(model, **inputs)


def test_static_cache():
    model, inputs = small(transformers.LlamaForCausalLM, transformers.LlamaConfig), padded()
    model.generation_config.cache_implementation = "static"
    assert_same(model, **inputs)


@pytest.mark.skipif(int(transformers.__version__.split(".")[0]) < 5, reason="transformers 5's continuous batching")
def test_continuous_batching():
    if DEVICE == "cpu":
        pytest.importorskip("psutil", reason="transformers asks psutil for the memory of a CPU")
    model = small(transformers.LlamaForCausalLM, transformers.LlamaConfig)
    prompts = [list(range(3, 13)), list(range(50, 57)), list(range(100, 131))]
    alone = [tokens(model, "sdpa", input_ids=torch.tensor([p], device=DEVICE))[0, len(p):].tolist() for p in prompts]
    options = transformers.GenerationConfig(max_new_tokens=24, do_sample=False, eos_token_id=2, pad_token_id=0)
    # Else transformers makes a cache of most of the GPU's memory: for so small a model millions of blocks, one Python object each.
    cache = transformers.ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64, block_size=32)
    together = fulmen.transformers.page(model).generate_batch(prompts, generation_config=options, continuous_batching_config=cache)
    assert [r.generated_tokens for r in together.values()] == alone


def test_dropout_is_refused():
    model = small(transformers.LlamaForCausalLM, transformers.LlamaConfig, attention_dropout=0.1).train()
    model.set_attn_implementation("fulmen")
    with pytest.raises(NotImplementedError, match="dropout"), torch.no_grad():
        model(torch.arange(3, 9, device=DEVICE)[None])


def test_gradients_are_refused():
    model = small(transformers.LlamaForCausalLM, transformers.LlamaConfig)
    model.set_attn_implementation("fulmen")
    with pytest.raises(NotImplementedError, match="gradients: .*no_grad"):
        model(torch.arange(3, 9, device=DEVICE)[None])


def test_model_file():
    for package in ("gguf", "accelerate"):  # transformers reads such a file with them
        pytest.importorskip(package)
    file = os.environ.get("FULMEN_MODEL")
    if not file:
        pytest.skip("FULMEN_MODEL names no model")
    path = pathlib.Path(file)
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=DTYPE).eval().to(DEVICE)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    text = [tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True)
            for question in ("What is the capital of France?", "Write a haiku about the sea.")]
    inputs = tokenizer(text, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False).to(DEVICE)
    ours = assert_same(model, **inputs)
    assert "Paris" in tokenizer.decode(ours[0])
