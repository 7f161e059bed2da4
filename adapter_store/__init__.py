"""Versions of LoRA adapters in an S3-compatible store: the only truth a serving node follows.

Every object is write-once. A commit is one conditional PUT of the next log record, so a reader
sees the old version whole or the new one whole. Redis only keeps publishers from wasting work.
"""
