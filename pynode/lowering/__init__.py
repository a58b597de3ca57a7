"""Lowering: a field made of torch operations becomes programs that run without torch."""

from pynode.lowering.interpreter import Interpreter
from pynode.lowering.lowered import LoweredField, Parameter
from pynode.lowering.pipeline import lower
from pynode.lowering.program import Instruction, Program
from pynode.lowering.trace import PROGRAMS

__all__ = [
    "PROGRAMS",
    "Instruction",
    "Interpreter",
    "LoweredField",
    "Parameter",
    "Program",
    "lower",
]
