"""Goldens of the ONNX runner. Witness: onnxruntime without optimisations, checked against onnx's own reference."""

import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
# The folder's name is that of the library, so the path that would shadow it has to go last.
sys.path = [entry for entry in sys.path if pathlib.Path(entry or ".").resolve() != HERE] + [str(HERE)]
import numpy  # noqa: E402
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from onnx.reference.op_run import OpRun  # noqa: E402

sys.path.append(str(HERE.parent))
from builder import Graph  # noqa: E402
from common import fresh, relative_error, save_case  # noqa: E402
from classifiers import CLASSIFIERS  # noqa: E402
from faces import FACES  # noqa: E402
from operators import OPERATORS  # noqa: E402

# Outputs where onnx's own reference departs from the text of the standard.
REFERENCE_DIFFERS = {"older-opset": {"softmax_flattened"}, "norms": {"lrn"}}
# Graphs with an operator which onnx's own reference does not implement, or not all of.
ONE_WITNESS = {"upsample-linear", "transposed", "negative-borders"}


class BatchNormalization(OpRun):
    """onnx's own takes a file with a `momentum` for one in training and uses the batch's statistics."""

    op_domain = ""

    def _run(self, x, scale, bias, mean, var, epsilon=1e-5, **_unused):
        shape = (1, -1) + (1,) * (x.ndim - 2)
        scale, bias, mean, var = (v.reshape(shape) for v in (scale, bias, mean, var))
        return ((scale * (x - mean) / numpy.sqrt(var + epsilon) + bias).astype(x.dtype),)


def run(model: onnx.ModelProto, feeds: dict) -> dict:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds)))


def second_witness(graph: Graph, model: onnx.ModelProto, outputs: dict) -> float:
    values = ReferenceEvaluator(model, new_ops=[BatchNormalization]).run(list(outputs), graph.feeds)
    worst, wrong = 0.0, []
    for (name, ours), theirs in zip(outputs.items(), values):
        if name in REFERENCE_DIFFERS.get(graph.name, ()):
            continue
        error = relative_error(theirs, ours) if ours.shape == theirs.shape else float("inf")
        if error > 1e-4:
            wrong.append(f"{name} differs by {error}, {ours.shape} and {theirs.shape}")
        worst = max(worst, error)
    if wrong:
        raise AssertionError(f"{graph.name}: {wrong}")
    return worst


def main() -> None:
    for build in OPERATORS + CLASSIFIERS + FACES:
        graph = build()
        model = graph.model()
        outputs = run(model, graph.feeds)
        note = f"opset {graph.opset}. "
        if graph.name not in ONE_WITNESS:
            note += f"onnx's reference evaluator agrees to {second_witness(graph, model, outputs):.0e}."
        folder = fresh("onnx", graph.name)
        onnx.save(model, folder / "model.onnx")
        save_case(folder, "onnx", "model.onnx", outputs, inputs=graph.feeds, seed=graph.seed, note=note)


if __name__ == "__main__":
    main()
