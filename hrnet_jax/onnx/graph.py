"""Writes ONNX graphs node by node.

graph = Graph()
x = graph.input("x", np.float32, ("batch", 3))
graph.output("y", graph.add("Relu", 2 * x + 1), ("batch", 3))
onnx.save(graph.model("example"), "example.onnx")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

# Read by every runtime of the last years; newer opsets have nothing that HRNet needs. 8 is opset 17's IR version.
OPSET, IR_VERSION = 17, 8

Shape = Sequence[int | str]  # a name is a dimension of any size


@dataclasses.dataclass(frozen=True)
class Value:
    """The output of a node, an input or a constant, with arithmetic as of an array.

    The other operand may be a Python number, which becomes float32, or a NumPy array or scalar, which keeps its type.
    """

    graph: Graph
    name: str

    __array_ufunc__ = None  # of a NumPy array and a Value, the Value's operator counts

    def __add__(self, other: Any) -> Value:
        return self.graph.add("Add", self, other)

    def __radd__(self, other: Any) -> Value:
        return self.graph.add("Add", other, self)

    def __sub__(self, other: Any) -> Value:
        return self.graph.add("Sub", self, other)

    def __mul__(self, other: Any) -> Value:
        return self.graph.add("Mul", self, other)

    def __rmul__(self, other: Any) -> Value:
        return self.graph.add("Mul", other, self)

    def __truediv__(self, other: Any) -> Value:
        """Of integers: rounded towards zero."""
        return self.graph.add("Div", self, other)

    def __gt__(self, other: Any) -> Value:
        return self.graph.add("Greater", self, other)

    def __lt__(self, other: Any) -> Value:
        return self.graph.add("Less", self, other)

    def __and__(self, other: Any) -> Value:
        return self.graph.add("And", self, other)

    def astype(self, dtype: Any) -> Value:
        """The values in another NumPy type."""
        return self.graph.add("Cast", self, to=_type(dtype))


class Graph:
    """An ONNX graph that grows by the nodes that are added; all constants are stored inside."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, dtype: Any, shape: Shape) -> Value:
        """An input of the graph."""
        self._inputs.append(helper.make_tensor_value_info(name, _type(dtype), shape))
        return Value(self, name)

    def output(self, name: str, value: Value, shape: Shape) -> None:
        """Makes a float32 value an output of the graph."""
        self.add("Identity", value, name=name)
        self._outputs.append(helper.make_tensor_value_info(name, _type(np.float32), shape))

    def constant(self, array: Any, name: str = "") -> Value:
        """A constant; Python numbers become float32."""
        array = np.asarray(array, np.float32 if isinstance(array, int | float) else None, order="C")
        name = name or f"constant_{len(self._constants)}"
        self._constants[name] = numpy_helper.from_array(array, name)
        return Value(self, name)

    def add(self, kind: str, *inputs: Any, name: str = "", **attributes: Any) -> Value:
        """Adds a node with one output.

        Args:
          kind: the ONNX operator.
          inputs: values; anything else becomes a constant. None: an optional input that is left out.
          name: of the node and its output.
          attributes: of the operator.
        """
        return self.split(kind, *inputs, names=[name or f"{kind}_{len(self._nodes)}"], **attributes)[0]

    def split(self, kind: str, *inputs: Any, names: Sequence[str], **attributes: Any) -> list[Value]:
        """Adds a node with several outputs of the given names; see `add`."""
        self._nodes.append(helper.make_node(kind, [self._name(x) for x in inputs], names, name=names[0], **attributes))
        return [Value(self, name) for name in names]

    def _name(self, x: Any) -> str:
        if x is None:
            return ""
        return (x if isinstance(x, Value) else self.constant(x)).name

    def model(self, name: str) -> onnx.ModelProto:
        """The finished model, checked by ONNX's own rules."""
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, [*self._constants.values()])
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="hrnet_jax",
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def _type(dtype: Any) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
