"""CPU kernels in C: `kernels.c`, compiled at first use for the processor at hand.

They do what the torch references beside the contracts do, reading pages and blocks in place; a
machine without a C compiler serves with the references, slower and equally right.
"""

from inference_node.kernels.native.build import NoCompiler, build
from inference_node.kernels.native.layers import DecoderLayer, DecoderLayers
from inference_node.kernels.native.library import Library, in_panels, load
from inference_node.kernels.native.model import Surroundings, WholeModel
from inference_node.kernels.native.structures import Product

__all__ = [
    "DecoderLayer",
    "DecoderLayers",
    "Library",
    "NoCompiler",
    "Product",
    "Surroundings",
    "WholeModel",
    "build",
    "in_panels",
    "load",
]
