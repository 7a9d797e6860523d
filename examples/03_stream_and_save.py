"""A stream: a session reads, is saved, goes on elsewhere exactly as it would have, and is forked.

The model is not trained here, so what it says is noise; what happens to its state is the same for every model.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import nestling as nl

TEXT = "A session is a model together with what it has read. " * 8


def main(folder: Path) -> None:
    torch.manual_seed(0)
    model = nl.build("hope", dim=64, layers=2, heads=2).eval()
    tokenizer = nl.data.ByteTokenizer()
    session = nl.Session(model, tokenizer)
    for number in range(3):
        print(f"reading {number + 1}: {session.learn(TEXT)}")
    print(f"{session.position:,} tokens read, {session.nbytes:,} bytes of state: as many as after the first token")

    # Saved without the model, loaded with it: the same from here on, bit for bit.
    session.save(folder / "session.safetensors")
    again = nl.Session.load(model, folder / "session.safetensors")
    assert again.generate("And then", max_tokens=20) == session.generate("And then", max_tokens=20)

    # A fork goes its own way; its parent does not notice.
    child = session.fork()
    child.learn("Something else altogether. " * 20)
    tokens = tokenizer.encode(TEXT)
    assert torch.equal(session.feed(tokens), again.feed(tokens))
    print("loaded and original agree exactly; the fork is at", child.position, "and its parent at", session.position)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
