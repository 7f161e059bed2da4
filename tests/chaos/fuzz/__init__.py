"""Fuzzing of everything that reads what somebody else wrote.

targets   what is fuzzed: seeds, the product's reader, how inputs are bent, a seeded bug
models    a second opinion on what was accepted, independent of the product and small
mutation  how JSON and bytes are bent
child     one target in a process of its own, guided by coverage (atheris)
engine    starts children, or bends blindly in this process where atheris is not installed
"""
