"""Inputs that must be refused, in tables to be read: what is wrong, and how it is refused.

containers  files that are not what they say
semantics   well-formed weights that cannot be served
configs     what an adapter may not ask for
names       what nothing may be called
records     what may lie in a bucket
signatures  what nobody signed who may
in_flight   what of this can be forged into a bucket, beside requests that are being answered
"""
