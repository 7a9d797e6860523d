"""Text to batches: documents, tokenizers, tokens cached on disk, and packed rows that reset state between documents.

``corpus.stdlib`` or ``corpus.read`` → ``Document`` → ``TokenFile.build`` with a ``Tokenizer`` → ``Packed.batch(step)``.
"""

from nestling.data import corpus
from nestling.data.corpus import Document, Summary, summary
from nestling.data.packing import IGNORED, Batch, Packed, stream
from nestling.data.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    IncrementalDecoder,
    Tokenizer,
    check_range,
    load_tokenizer,
)
from nestling.data.tokens import TokenFile, cache_folder

__all__ = [
    "corpus",
    "Document",
    "Summary",
    "summary",
    "Tokenizer",
    "ByteTokenizer",
    "BPETokenizer",
    "IncrementalDecoder",
    "load_tokenizer",
    "check_range",
    "TokenFile",
    "cache_folder",
    "Batch",
    "Packed",
    "stream",
    "IGNORED",
]
