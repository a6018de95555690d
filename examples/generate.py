"""Writes text with the model that train.py saved, one character at a time.

    python examples/generate.py [prompt]

The model reads the prompt once and keeps a state; each further character is one step from there, and exactly what a run
over the whole text would give. Dimensions: B batch, V vocabulary.
"""

import sys

import torch

from hyena.models import CausalLM, CausalLMConfig

prompt = sys.argv[1] if len(sys.argv) > 1 else "ROMEO:"
torch.set_num_threads(1)  # a step of a model this small gains nothing from more
torch.manual_seed(0)

saved = torch.load("shakespeare.pt", weights_only=True)
vocabulary = saved["vocabulary"]
model = CausalLM(CausalLMConfig.from_dict(saved["config"]))
model.load_state_dict(saved["model"])
model.eval()

# By hand, up to the longest row that the model takes.
room = model.config.l_max
tokens = torch.tensor([[vocabulary.index(character) for character in prompt]])  # (B, length)
print(prompt, end="")
with torch.inference_mode():
    state = model.init_state(batch=1, max_length=room)
    logits, state = model.prefill(tokens, state)  # (B, length, V)
    logits = logits[:, -1]
    for _ in range(room - tokens.size(1)):
        token = torch.multinomial((logits / 0.8).softmax(-1), 1)[:, 0]  # (B,), at temperature 0.8
        print(vocabulary[int(token)], end="", flush=True)
        logits, state = model.step(token, state)  # (B, V)

# The same in one call, which starts again from half a context whenever the model's is full.
print("\n\n--- generate() ---\n")
row = model.generate(tokens, 300, temperature=0.8, top_k=20, seed=0, window=room // 2)[0]
print("".join(vocabulary[int(token)] for token in row))
