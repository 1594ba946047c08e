"""Pipelines of logits processors: LogitsPipe([Temperature(), Softmax(), TopK(), Sample()])(logits, temperature=0.7, ...).

A processor becomes an operator on one type of tensor (logits, probs, indices); compiling checks the chain and replaces
runs of operators by one that does their work in a single call.
"""
import enum
import logging

import torch

from . import sampling


class TensorType(enum.Enum):
    LOGITS = "logits"
    PROBS = "probs"
    INDICES = "indices"


class LegalizationError(Exception):
    """A processor that can't take what comes before it."""


class CompileError(Exception):
    """A chain of operators that breaks a rule."""


class TaggedTensor:
    """A tensor and what it holds."""

    def __init__(self, data, type):
        self.data, self.type = data, type

    @classmethod
    def logits(cls, t):
        return cls(t, TensorType.LOGITS)

    @classmethod
    def probs(cls, t):
        return cls(t, TensorType.PROBS)

    @classmethod
    def indices(cls, t):
        return cls(t, TensorType.INDICES)

    shape = property(lambda self: self.data.shape)
    device = property(lambda self: self.data.device)
    dtype = property(lambda self: self.data.dtype)

    def size(self, dim=None):
        return self.data.size() if dim is None else self.data.size(dim)

    def __repr__(self):
        return f"TaggedTensor({self.type.value}, shape={tuple(self.shape)})"


# ------------------------------------------------------------------------------------------ operators
class Op:
    """Takes a TaggedTensor of type IN and gives one of type OUT. Subclasses define __call__(tensor, **params)."""
    IN = OUT = None

    def _check(self, tensor):
        if tensor.type != self.IN:
            raise ValueError(f"{type(self).__name__} expects {self.IN.value}, found {tensor.type.value}")

    def __call__(self, tensor, **kwargs):
        raise NotImplementedError

    def __repr__(self):
        return f"{type(self).__name__}({self.IN.value} -> {self.OUT.value})"


class ParameterizedOp(Op):
    """An operator with parameters of its own, which those of the call override."""

    def __init__(self, **default_params):
        self.default_params = default_params

    def _get_param(self, name, kwargs, required=False, default=None):
        value = kwargs.get(name, self.default_params.get(name, default))
        if value is None and required:
            raise ValueError(f"{type(self).__name__} needs the parameter {name}")
        return value

    def _threshold(self, name, kwargs, kind=float, most=None):
        value = self._get_param(name, kwargs, required=True)
        if isinstance(value, torch.Tensor):
            return value
        kinds = (int,) if kind is int else (float, int)
        if isinstance(value, bool) or not isinstance(value, kinds) or value <= 0 or (most is not None and value > most):
            raise ValueError(f"{name} must be a positive {kind.__name__}{'' if most is None else f' up to {most}'}"
                             f" or a tensor, found {value!r}")
        return value


def _temperature(op, kwargs):
    value = op._get_param("temperature", kwargs, required=True)
    if isinstance(value, torch.Tensor):
        return value
    if not isinstance(value, float) or value <= 0:
        raise ValueError(f"temperature must be a positive float or a tensor, found {value!r}")
    return value


class _OnLogits(ParameterizedOp):
    IN = OUT = TensorType.LOGITS


class _OnProbs(ParameterizedOp):
    IN = OUT = TensorType.PROBS


class TemperatureOp(_OnLogits):
    def __call__(self, tensor, **kwargs):
        self._check(tensor)
        value = _temperature(self, kwargs)
        return TaggedTensor.logits(tensor.data / (value[:, None] if isinstance(value, torch.Tensor) else value))


class SoftmaxOp(_OnLogits):
    OUT = TensorType.PROBS

    def __call__(self, tensor, **kwargs):
        self._check(tensor)
        return TaggedTensor.probs(sampling.softmax(tensor.data))


class LogitsTopKOp(_OnLogits):
    def __call__(self, tensor, **kwargs):
        self._check(tensor)
        return TaggedTensor.logits(sampling.top_k_mask_logits(tensor.data, self._threshold("top_k", kwargs, int)))


class ProbsTopKOp(_OnProbs):
    def __call__(self, tensor, **kwargs):
        self._check(tensor)
        return TaggedTensor.probs(sampling.top_k_renorm_probs(tensor.data, self._threshold("top_k", kwargs, int)))


class TopPOp(_OnProbs):
    def __call__(self, tensor, **kwargs):
        self._check(tensor)
        return TaggedTensor.probs(sampling.top_p_renorm_probs(tensor.data, self._threshold("top_p", kwargs, most=1)))


class MinPOp(_OnProbs):
    def __call__(self, tensor, **kwargs):
        self._check(tensor)
        probs, min_p = tensor.data, self._threshold("min_p", kwargs, most=1)
        floor = probs.amax(-1, keepdim=True) * (min_p[:, None] if isinstance(min_p, torch.Tensor) else min_p)
        kept = torch.where(probs >= floor, probs, 0.0)
        return TaggedTensor.probs(kept / kept.sum(-1, keepdim=True))


class _SampleOp(ParameterizedOp):
    OUT = TensorType.INDICES
    DRAW, THRESHOLDS = None, ()  # a function of sampling, and its thresholds: (name, kind, most)

    def __call__(self, tensor, **kwargs):
        self._check(tensor)
        thresholds = {name: self._threshold(name, kwargs, kind, most) for name, kind, most in self.THRESHOLDS}
        passed = {name: self._get_param(name, kwargs) for name in ("indices", "generator", "seed", "offset")}
        return TaggedTensor.indices(getattr(sampling, self.DRAW)(tensor.data, **thresholds, **passed, **self.extra()))

    def extra(self):
        return {}


class LogitsSampleOp(_SampleOp):
    IN, DRAW = TensorType.LOGITS, "sampling_from_logits"


class ProbsSampleOp(_SampleOp):
    IN, DRAW = TensorType.PROBS, "sampling_from_probs"


class FusedProbsTopKSampleOp(ProbsSampleOp):
    DRAW, THRESHOLDS = "top_k_sampling_from_probs", (("top_k", int, None),)


class FusedProbsTopPSampleOp(ProbsSampleOp):
    DRAW, THRESHOLDS = "top_p_sampling_from_probs", (("top_p", float, 1),)


class FusedProbsMinPSampleOp(ProbsSampleOp):
    DRAW, THRESHOLDS = "min_p_sampling_from_probs", (("min_p", float, 1),)


class FusedProbsTopKTopPSampleOp(ProbsSampleOp):
    DRAW, THRESHOLDS = "top_k_top_p_sampling_from_probs", (("top_k", int, None), ("top_p", float, 1))

    def extra(self):
        return {"filter_apply_order": "joint"}


class FusedTemperatureSoftmaxOp(SoftmaxOp):
    def __call__(self, tensor, **kwargs):
        self._check(tensor)
        return TaggedTensor.probs(sampling.softmax(tensor.data, _temperature(self, kwargs)))


# ------------------------------------------------------------------------------------------ processors
class LogitsProcessor:
    """A step of a pipeline. OPS: the operator for each type of tensor that it takes."""
    OPS = {}

    def __init__(self, **params):
        self.params = params

    def supported_types(self):
        return list(self.OPS)

    def legalize(self, input_type):
        """The operators that do this step on a tensor of input_type."""
        if input_type not in self.OPS:
            kinds = " or ".join(t.value for t in self.OPS)
            raise LegalizationError(f"{type(self).__name__} takes {kinds}, found {input_type.value}")
        return [self.OPS[input_type](**self.params)]


class Temperature(LogitsProcessor):
    OPS = {TensorType.LOGITS: TemperatureOp}


class Softmax(LogitsProcessor):
    OPS = {TensorType.LOGITS: SoftmaxOp}

    def __init__(self, enable_pdl=None, **params):
        super().__init__(**params)


class TopK(LogitsProcessor):
    """joint_topk_topp: a TopP and a Sample that follow are done with it in one call, each filter on the whole row."""
    OPS = {TensorType.LOGITS: LogitsTopKOp, TensorType.PROBS: ProbsTopKOp}

    def __init__(self, joint_topk_topp=False, **params):
        super().__init__(joint_topk_topp=joint_topk_topp, **params)


class TopP(LogitsProcessor):
    OPS = {TensorType.PROBS: TopPOp}


class MinP(LogitsProcessor):
    OPS = {TensorType.PROBS: MinPOp}


class Sample(LogitsProcessor):
    OPS = {TensorType.LOGITS: LogitsSampleOp, TensorType.PROBS: ProbsSampleOp}

    def __init__(self, deterministic=True, **params):
        super().__init__(deterministic=deterministic, **params)


def legalize_processors(processors, initial_type):
    """The operators of a chain of processors that begins with a tensor of initial_type."""
    if not processors:
        raise LegalizationError("a pipeline has at least one processor")
    ops, at = [], initial_type
    for processor in processors:
        if not isinstance(processor, LogitsProcessor):
            raise LegalizationError(f"expected a LogitsProcessor, found {type(processor).__name__}")
        ops += processor.legalize(at)
        at = ops[-1].OUT
    return ops


def infer_initial_type(processors):
    kinds = processors[0].supported_types()
    if len(kinds) != 1:
        raise LegalizationError(f"{type(processors[0]).__name__} takes {' or '.join(t.value for t in kinds)}: "
                                "input_type has to say which")
    return kinds[0]


# ------------------------------------------------------------------------------------------ compilation
class FusionRule:
    """Where consecutive operators are of the classes `pattern` and guard(ops) holds, build(ops) replaces them."""

    def __init__(self, pattern, guard, build, prio=0):
        self.pattern, self.guard, self.build, self.prio = tuple(pattern), guard, build, prio

    def matches(self, ops):
        return (len(ops) == len(self.pattern) and all(type(op) is kind for op, kind in zip(ops, self.pattern)) and
                self.guard(ops))


def _merged(kind):
    def build(ops):
        params = {}
        for op in ops:
            params.update(op.default_params)
        return kind(**params)
    return build


def _always(ops):
    return True


def _default_rules():
    pairs = ((ProbsTopKOp, FusedProbsTopKSampleOp), (TopPOp, FusedProbsTopPSampleOp), (MinPOp, FusedProbsMinPSampleOp))
    rules = [FusionRule((first, ProbsSampleOp), _always, _merged(fused), 5) for first, fused in pairs]
    joint = (ProbsTopKOp, TopPOp, ProbsSampleOp)
    rules.append(FusionRule(joint, lambda ops: bool(ops[0].default_params.get("joint_topk_topp")),
                            _merged(FusedProbsTopKTopPSampleOp), 10))
    rules.append(FusionRule((TemperatureOp, SoftmaxOp), _always, _merged(FusedTemperatureSoftmaxOp), 10))
    return rules


def _one_softmax(ops):
    if sum(isinstance(op, SoftmaxOp) for op in ops) > 1:
        raise CompileError("a pipeline has at most one Softmax")


def _indices_end(ops):
    if any(op.OUT == TensorType.INDICES for op in ops[:-1]):
        raise CompileError("nothing follows an operator that gives indices")


class Compiler:
    """Checks a chain of operators and fuses it."""

    def __init__(self):
        self.rules, self.checks = _default_rules(), [_one_softmax, _indices_end]

    def register_fusion_rule(self, rule):
        self.rules.append(rule)

    def register_validity_check(self, check):
        self.checks.append(check)

    def compile(self, ops):
        if not ops:
            raise CompileError("a pipeline has at least one operator")
        for before, after in zip(ops, ops[1:]):
            if before.OUT != after.IN:
                raise CompileError(f"{before!r} can't be followed by {after!r}")
        for check in self.checks:
            check(ops)
        return self._fuse(list(ops))

    def _fuse(self, ops):
        for rule in sorted(self.rules, key=lambda rule: (-rule.prio, -len(rule.pattern))):
            at = 0
            while at + len(rule.pattern) <= len(ops):
                window = ops[at:at + len(rule.pattern)]
                if rule.matches(window):
                    ops[at:at + len(window)] = [rule.build(window)]
                at += 1
        return ops


def compile_pipeline(ops, custom_fusion_rules=None, custom_validity_checks=None):
    compiler = Compiler()
    for rule in custom_fusion_rules or ():
        compiler.register_fusion_rule(rule)
    for check in custom_validity_checks or ():
        compiler.register_validity_check(check)
    return compiler.compile(ops)


class LogitsPipe:
    """processors in order. input_type is needed where the first one takes both logits and probs.

    Called with logits or probs [rows, V] and the parameters by name: temperature, top_k, top_p, min_p, indices,
    generator, seed, offset. -> the last operator's tensor."""

    def __init__(self, processors, compile=True, input_type=None, custom_fusion_rules=None, custom_validity_checks=None):
        if not processors:
            raise ValueError("processors: expected at least one, found none")
        self.processors = list(processors)
        try:
            self._initial_type = input_type or infer_initial_type(self.processors)
            self.ops = legalize_processors(self.processors, self._initial_type)
        except LegalizationError as error:
            raise ValueError(f"Pipeline creation failed: {error}") from error
        self.compiled_ops = None
        if compile:
            self.compile(custom_fusion_rules, custom_validity_checks)

    @property
    def initial_type(self):
        return self._initial_type

    def compile(self, custom_fusion_rules=None, custom_validity_checks=None):
        try:
            self.compiled_ops = compile_pipeline(self.ops, custom_fusion_rules, custom_validity_checks)
        except CompileError as error:
            raise ValueError(f"Compilation failed: {error}") from error

    def __call__(self, x, **kwargs):
        if self.compiled_ops is None:
            logging.getLogger(__name__).debug("the pipeline is not compiled: its operators run one by one")
        tensor = x if isinstance(x, TaggedTensor) else TaggedTensor(x, self._initial_type)
        for at, op in enumerate(self.ops if self.compiled_ops is None else self.compiled_ops):
            try:
                tensor = op(tensor, **kwargs)
            except Exception as error:
                raise ValueError(f"Error executing operator {at} ({type(op).__name__}): {error}") from error
        return tensor.data

    def __repr__(self):
        names = (" -> ".join(type(x).__name__ for x in xs or ()) for xs in (self.processors, self.ops, self.compiled_ops))
        return "LogitsPipe([{}], ops=[{}], compiled_ops=[{}])".format(*names)
