"""A session: a model, what it has read so far, and the words for going on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nestling import tree
from nestling.data.tokenizer import ByteTokenizer, Ids, IncrementalDecoder, Tokenizer, check_range
from nestling.errors import NestlingError
from nestling.models import LM
from nestling.models.describe import size, title
from nestling.nn import State, buffered, settled
from nestling.stream.identity import first_difference, identity
from nestling.stream.program import Program
from nestling.stream.reading import Moment, Reading, Surprisal, advance, begin, check_vocabulary
from nestling.stream.sampler import Sampler
from nestling.stream.text import stop_strings, until

_FORMAT, _VERSION = "nestling.session", "1"


class Session:
    """One stream through a model: the only object of Nestling that changes.

    What it reads, its own words included, is written into the model's memories; the model's parameters stay as they are.
    Memory is constant in the length of the stream. A text that cannot be read
    whole leaves the session as it was. Text is read in
    pieces of ``piece`` tokens, which changes the time that reading takes and nothing else (but rounding). A session works on the
    device and in the type of its model, keeps no gradient, and is not made for several threads at a time. ``compiled``: tokens that come
    alone are read by a ``Program``, which is compiled at the first and then faster.

    Raises:
        NestlingError: the tokenizer has more tokens than the model, or ``piece`` is under 1.

    >>> import nestling
    >>> model = nestling.build("titans_lmm", dim=32, layers=1, heads=2)
    >>> session = Session(model, ByteTokenizer())
    >>> session.learn("The capital of Norway is Oslo. ").tokens
    31
    >>> child = session.fork()
    >>> text = child.generate("The capital of Norway is", max_tokens=5, sampler=Sampler(temperature=0))
    >>> session.position, child.position
    (31, 60)
    """

    def __init__(self, model: LM, tokenizer: Tokenizer, *, piece: int = 256, compiled: bool = False) -> None:
        check_vocabulary(model, tokenizer)
        if piece < 1:
            raise NestlingError(f"piece must be at least 1 token, got {piece}. Leave it at 256.")
        self.model, self.tokenizer, self.piece = model, tokenizer, piece
        self._read: LM | Program = Program(model) if compiled else model
        self._moment = begin(model)

    def __repr__(self) -> str:
        return f"Session({title(self.model.config)}, position={self.position:,}, {size(self.nbytes)})"

    @property
    def position(self) -> int:
        """Tokens read so far, those that it wrote itself included."""
        return int(self._moment.position)

    @property
    def state(self) -> State:
        """The model's state after all that was read: a tree of tensors with B = 1."""
        return self._settled().state

    @property
    def nbytes(self) -> int:
        """Bytes that the session keeps beside the model: the state, the last prediction, the position."""
        return tree.nbytes(self._settled())

    def learn(self, text: str) -> Reading:
        """Read ``text``, memories writing as they read, and say how well each token was predicted before it was read.

        A text that is learnt in parts is the same text where the tokenizer cuts it alike, as the byte tokenizer always does.
        """
        begun = time.perf_counter()
        ids = self.tokenizer.encode(text)
        nats = self.feed(ids)
        predicted = ids[len(ids) - len(nats) :]
        cost = Surprisal(len(predicted), self.tokenizer.count_bytes(predicted), float(nats.double().sum()))
        return Reading(len(ids), self.tokenizer.count_bytes(ids), cost, time.perf_counter() - begun)

    def feed(self, tokens: Ids) -> Tensor:
        """Read ``tokens`` (T,), and return the nats −ln p of each that was predicted, in order.

        That is all of them, (T,): the first is scored by the prediction that the feed before it left. Only the very first token
        of a fresh session has no prediction, and is not among them: (T − 1,).
        """
        if isinstance(tokens, str):
            raise NestlingError(f"a session feeds on token ids, got the text {tokens[:20]!r}. Use session.learn(text).")
        array = check_range(tokens, self.model.config.vocab_size)
        if array.ndim != 1:
            raise NestlingError(f"a session reads tokens (T,), got {array.shape}. Feed one row at a time.")
        moment, costs = self._moment, []
        row = torch.from_numpy(array.astype(np.int64)).to(moment.position.device)[None]
        for piece in row.split(self.piece, dim=1) if array.size else ():
            nats, predicted, moment = advance(self._read, piece, moment)
            costs.append(nats[predicted])
        self._moment = tree.map(_compact, moment)
        return torch.cat(costs) if costs else moment.logits.new_zeros(0)

    def draw(self, sampler: Sampler = Sampler()) -> int:
        """Choose the next token by ``sampler``, read it, and return it: what was said is in the state."""
        if self.position == 0:
            raise NestlingError(
                "a fresh session has nothing to go on from. Give it a prompt, or let it learn a text first."
            )
        # A model may have more rows than the tokenizer has tokens.
        logits = self._moment.logits[:, : self.tokenizer.vocab_size]
        token = int(sampler(logits, sampler.generator(self.position, logits.device)))
        # More tokens come alone: what they write may wait until it is read.
        self._moment = replace(self._moment, state=buffered(self._moment.state))
        self.feed([token])
        return token

    def stream(
        self, prompt: str = "", max_tokens: int = 256, sampler: Sampler = Sampler(), stop: str | Sequence[str] = ()
    ) -> Iterator[str]:
        """Read ``prompt`` now, then go on with it: pieces of text, each token drawn and read when the next piece is asked for.

        Ends after ``max_tokens`` tokens, or where the text reaches one of ``stop``, which is read (the session has said it) and
        left out of the text. A character whose bytes ``max_tokens`` cuts is given as U+FFFD.
        """
        stops = stop_strings(stop)
        if max_tokens < 0:
            raise NestlingError(f"max_tokens must be at least 0, got {max_tokens}.")
        ids = self.tokenizer.encode(prompt)
        if not ids and self.position == 0:
            raise NestlingError("a fresh session has nothing to go on from: the prompt is empty. Give it some text.")
        self.feed(ids)
        return until(self._drawn(max_tokens, sampler), stops)

    def generate(
        self, prompt: str = "", max_tokens: int = 256, sampler: Sampler = Sampler(), stop: str | Sequence[str] = ()
    ) -> str:
        """The text of ``stream``, in one."""
        return "".join(self.stream(prompt, max_tokens, sampler, stop))

    def fork(self) -> Session:
        """A session that goes on from here on its own: what either reads never reaches the other."""
        child = Session(self.model, self.tokenizer, piece=self.piece)
        child._read = self._read
        child._moment = tree.fork(self._settled())
        return child

    def save(self, path: str | Path) -> None:
        """Write the session, without its model and tokenizer, to one safetensors file, atomically."""
        metadata = {
            "format": _FORMAT,
            "version": _VERSION,
            "model": self.model.fingerprint,
            "identity": json.dumps(identity(self.model)),
            "tokenizer": self.tokenizer.fingerprint,
            "piece": str(self.piece),
        }
        tree.save(path, self._settled(), metadata)

    @classmethod
    def load(
        cls, model: LM, path: str | Path, tokenizer: Tokenizer = ByteTokenizer(), *, compiled: bool = False
    ) -> Session:
        """Go on with a saved session; on the same machine, bit for bit as it would have gone on.

        Raises:
            NestlingError: the file is missing, truncated or no session's, or was saved with another model (other weights
                included) or tokenizer; the first difference is named.

        >>> import nestling, pathlib, tempfile
        >>> model = nestling.build("hope", dim=32, layers=1, heads=2)
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "session.safetensors"
        >>> session = Session(model, ByteTokenizer())
        >>> _ = session.learn("Once upon a time")
        >>> session.save(path)
        >>> Session.load(model, path).generate(max_tokens=8) == session.generate(max_tokens=8)
        True
        """
        metadata = tree.read_metadata(path)
        match metadata:
            case {"format": str(kind), "version": str(version)} if (kind, version) == (_FORMAT, _VERSION):
                _check_owner(path, metadata, model, tokenizer)
            case {"format": str(kind), "version": str(version)} if kind == _FORMAT:
                raise NestlingError(f"{path} is a session of version {version}, this is {_VERSION}. Update nestling.")
            case _:
                raise NestlingError(f"{path} is not a session. Pass a file that Session.save wrote.")
        session = cls(model, tokenizer, piece=int(metadata["piece"]), compiled=compiled)
        session._moment, _ = tree.load(path, session._moment)
        return session

    def _settled(self) -> Moment:
        """The moment with nothing left to write, from which the session goes on as well."""
        self._moment = settled(self._moment)
        return self._moment

    def _drawn(self, count: int, sampler: Sampler) -> Iterator[str]:
        decoder = IncrementalDecoder(self.tokenizer)
        for _ in range(count):
            yield decoder.push([self.draw(sampler)])
        yield decoder.flush()


def _check_owner(path: str | Path, metadata: dict[str, str], model: LM, tokenizer: Tokenizer) -> None:
    difference = first_difference(json.loads(metadata["identity"]), identity(model))
    if difference is None and metadata["model"] != model.fingerprint:
        difference = f"the fingerprint is {metadata['model'][:12]} there and {model.fingerprint[:12]} here"
    if difference is not None:
        raise NestlingError(
            f"{path} is a session of another model; first difference: {difference}. Load it with the model that saved it."
        )
    if metadata["tokenizer"] != tokenizer.fingerprint:
        raise NestlingError(
            f"{path} was saved with the tokenizer {metadata['tokenizer'][:12]}, got {tokenizer.fingerprint[:12]}. "
            "Pass the tokenizer that saved it."
        )


def _compact(leaf: Tensor) -> Tensor:
    """A view keeps all of its storage alive, such as the whole piece whose last tokens a convolution remembers."""
    return leaf if leaf.untyped_storage().nbytes() == leaf.numel() * leaf.element_size() else leaf.clone()
