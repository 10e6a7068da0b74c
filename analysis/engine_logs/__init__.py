"""Importers of other engines' logs: what vLLM, SGLang, llama.cpp, TensorRT-LLM and others say about acceptance.

`read_log` finds the engine, reads files of any size as a stream, checks that the numbers agree with one another, and
returns an `ImportedLog`. `write_as` prints a round table the way an engine would.
"""

from analysis.engine_logs.detect import ENGINES
from analysis.engine_logs.imported import ImportedLog
from analysis.engine_logs.reading import read_log
from analysis.engine_logs.writing import write_as

__all__ = ["ENGINES", "ImportedLog", "read_log", "write_as"]
