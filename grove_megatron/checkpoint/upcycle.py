"""``grove upcycle``: a child model on the weights of a trained parent.

A child is a source of weights like any other: what it takes from the parent is read from the
parent, the rest is made. So a child is written as a parent would be, to either format.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..model.architecture import Architecture
from ..model.families import is_buffer
from .config_keys import brief
from .source import Source
from .transforms import Shape
from .units import hf_shapes, units
from .weights import DTYPES, ConversionError, Problem, TensorInfo, Weights, usual_dtype

# Of the adjugates' gate and up projections (arXiv 2508.07785, upcycling).
ADJUGATE_STD = 0.006
# Of a new router (Megatron's own default).
ROUTER_STD = 0.02

Grouping = Mapping[int, list[int]]

_EXPERT = re.compile(
    r"(?P<layer>model\.layers\.(?P<number>\d+)\.mlp)\.experts\.(?P<expert>\d+)\.(?P<rest>.*)"
)
# In the child's names, a GroveMoE's.
_GATE = re.compile(r"model\.layers\.(?P<number>\d+)\.mlp\.gate\.weight")
_ADJUGATE = re.compile(r".*\.mlp(\.moe)?\.chunk_experts\.\d+\.(?P<which>gate|up|down)_proj\.weight")


class GroveChild:
    """Grove MoE on a parent with experts (arXiv 2508.07785, upcycling).

    Adjugates' down projections and expert biases are zero, so that the child computes what the
    parent computes; gate and up projections are normal. Everything else is the parent's, bit for
    bit.

    Args:
        parent: its weights.
        architecture: of the child.
        seed: of the normal entries; each tensor has a stream of its own, whatever is read first.
        std: of the normal entries.
        grouping: of every MoE layer, the parent's experts in the order that puts those of a group
            next to each other; absent: as they are.
        parent_architecture: None: of the child's names.
    """

    def __init__(
        self,
        parent: Weights,
        architecture: Architecture,
        seed: int,
        std: float = ADJUGATE_STD,
        grouping: Grouping | None = None,
        parent_architecture: Architecture | None = None,
    ):
        self._parent, self._seed, self._std = parent, seed, std
        # The parent's names of what it calls otherwise.
        self._theirs = (
            {} if parent_architecture is None else _renames(parent_architecture, architecture)
        )
        self._grouping = grouping or {}
        self._parent_infos = parent.infos()
        self._shapes = hf_shapes(architecture)
        self._own = {
            name: shape
            for name, shape in self._shapes.items()
            if _ADJUGATE.fullmatch(name) or is_buffer(name)
        }
        self._dtype = usual_dtype(self._parent_infos)

    @property
    def generated(self) -> dict[str, object]:
        """How the tensors that the parent does not have were made."""
        return {
            "adjugates": len([n for n in self._own if _ADJUGATE.fullmatch(n)]),
            "down_proj": "zero",
            "gate_proj, up_proj": f"normal, std {self._std}",
            "expert_bias": "zero",
            "seed": self._seed,
            "grouping": {layer: list(order) for layer, order in self._grouping.items()},
        }

    def infos(self) -> Mapping[str, TensorInfo]:
        own = {
            name: TensorInfo(shape, "F32" if is_buffer(name) else self._dtype, "the child")
            for name, shape in self._own.items()
        }
        taken = {}
        renamed = {*self._theirs.values()} - self._shapes.keys()
        for name in {**self._parent_infos, **self._shapes}:
            if name in renamed:
                continue
            source = self.parents_name(name)
            if source is not None and (source in self._parent_infos or source != name):
                absent = TensorInfo(self._shapes.get(name, ()), self._dtype, "the parent")
                taken[name] = _renamed(self._parent_infos.get(source, absent), source, name)
        return taken | own

    def read(self, name: str) -> Tensor:
        if is_buffer(name):
            return torch.zeros(self._own[name])
        if name in self._own:
            match = _ADJUGATE.fullmatch(name)
            assert match is not None
            std = 0.0 if match["which"] == "down" else self._std
            return _normal(self._own[name], std, self._seed, name).to(DTYPES[self._dtype])
        source = self.parents_name(name)
        assert source is not None
        tensor = self._parent.read(source)
        order = self._order_of_rows(name)
        return tensor if order is None else tensor[torch.tensor(order)]

    def parents_name(self, name: str) -> str | None:
        """The parent's tensor that this one is taken from; None if it is made."""
        if name in self._own:
            return None
        match = _EXPERT.fullmatch(name)
        order = self._grouping.get(int(match["number"])) if match else None
        if match is not None and order is not None and int(match["expert"]) < len(order):
            name = f"{match['layer']}.experts.{order[int(match['expert'])]}.{match['rest']}"
        return self._theirs.get(name, name)

    def is_copy(self, name: str) -> bool:
        """Has this tensor the bytes of the parent's?"""
        return name not in self._own and self._order_of_rows(name) is None

    def _order_of_rows(self, name: str) -> list[int] | None:
        gate = _GATE.fullmatch(name)
        return self._grouping.get(int(gate["number"])) if gate else None

    def identity(self) -> dict[str, object]:
        return {"parent": self._parent.identity(), "child": self.generated}


def _renames(parent: Architecture, child: Architecture) -> dict[str, str]:
    """Names of the child's tensors that the parent has under others, and those."""
    # Each by its key and place, counted over all layers.
    theirs = {(unit.key, unit.place): unit.names for unit in units(parent, layers_stacked=True)}
    return {
        name: source
        for unit in units(child, layers_stacked=True)
        if (names := theirs.get((unit.key, unit.place))) is not None
        for name, source in zip(unit.names, names, strict=True)
        if name != source
    }


class MoeChild:
    """Qwen3-MoE on a dense Qwen3 parent: sparse upcycling (arXiv 2212.05055).

    Every expert is a copy of the layer's MLP, or with ``granularity`` G one of its G slices. The
    weights of the selected experts sum to 1, so the child computes what the parent computes: with
    G slices, each copy's slices share a router row and are selected together, and the down
    projection is multiplied by G, which a power of two does exactly.

    Args:
        parent: its weights.
        architecture: of the child.
        seed: of the routers, which are normal.
        granularity: slices an MLP is cut in.
        std: of the routers.
    """

    def __init__(
        self,
        parent: Weights,
        architecture: Architecture,
        seed: int,
        granularity: int = 1,
        std: float = ROUTER_STD,
    ):
        self._parent, self._seed, self._std = parent, seed, std
        self._granularity = granularity
        self._parent_infos = parent.infos()
        self._shapes = hf_shapes(architecture)
        self._dtype = usual_dtype(self._parent_infos)

    @property
    def generated(self) -> dict[str, object]:
        return {
            "routers": f"normal, std {self._std}",
            "granularity": self._granularity,
            "seed": self._seed,
        }

    def infos(self) -> Mapping[str, TensorInfo]:
        found = {name: info for name, info in self._parent_infos.items() if not _is_mlp(name)}
        for name, shape in self._shapes.items():
            source = self.parents_name(name)
            if source is None:
                found[name] = TensorInfo(shape, self._dtype, "the child")
            elif source in self._parent_infos and source != name:
                mlp = _renamed(self._parent_infos[source], source, name)
                found[name] = replace(mlp, shape=self._slice(source, mlp.shape))
            elif source != name:
                found[name] = TensorInfo(shape, self._dtype, "the parent")
        return found

    def read(self, name: str) -> Tensor:
        if _GATE.fullmatch(name):
            experts, hidden = self._shapes[name]
            rows = _normal((experts // self._granularity, hidden), self._std, self._seed, name)
            return rows.repeat_interleave(self._granularity, 0).to(DTYPES[self._dtype])
        source = self.parents_name(name)
        assert source is not None
        tensor, match = self._parent.read(source), _EXPERT.fullmatch(name)
        if match is None:
            return tensor
        which, is_down = int(match["expert"]) % self._granularity, _is_down(source)
        part = tensor.chunk(self._granularity, int(is_down))[which]
        return part * self._granularity if is_down else part

    def parents_name(self, name: str) -> str | None:
        """The parent's tensor that this one is taken from; None if it is made."""
        if _GATE.fullmatch(name):
            return None
        match = _EXPERT.fullmatch(name)
        return name if match is None else f"{match['layer']}.{match['rest']}"

    def is_copy(self, name: str) -> bool:
        """Has this tensor the bytes of the parent's?"""
        whole = self._granularity == 1 or not _EXPERT.fullmatch(name)
        return whole and self.parents_name(name) is not None

    def _slice(self, mlp: str, shape: Shape) -> Shape:
        """Shape of a slice; one that cannot be cut stays as it is, to be refused as wrong."""
        cut = [1, self._granularity] if _is_down(mlp) else [self._granularity, 1]
        if len(shape) != 2 or shape[0] % cut[0] or shape[1] % cut[1]:
            return shape
        return shape[0] // cut[0], shape[1] // cut[1]

    def identity(self) -> dict[str, object]:
        return {"parent": self._parent.identity(), "child": self.generated}


def _is_mlp(name: str) -> bool:
    return re.fullmatch(r"model\.layers\.\d+\.mlp\.(gate|up|down)_proj\.weight", name) is not None


def _is_down(mlp: str) -> bool:
    return mlp.endswith(".down_proj.weight")


def _renamed(info: TensorInfo, source: str, name: str) -> TensorInfo:
    """What is known of the parent's ``source``, for messages about the child's ``name``."""
    return info if source == name else replace(info, origin=f"{info.origin} (there {source})")


def _normal(shape: Shape, std: float, seed: int, name: str) -> Tensor:
    """Normal entries of a stream that the seed and the name alone decide, fp32."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    return torch.randn(shape, generator=generator).mul_(std)


def grove_architecture(
    parent: Architecture, group_size: int, adjugate_ffn_hidden_size: int, scale: float
) -> Architecture:
    """The child of a parent with experts.

    A parent that does not normalise the weights of the selected experts, or that has experts
    without an FFN, keeps its router: a child has the bias of selection where it is the paper's.

    Raises:
        ValueError: all that does not fit.
    """
    problems = []
    if not parent.num_experts:
        problems.append("the parent has no experts; make some with --num-experts and --topk")
    elif parent.is_grove:
        problems.append(
            f"the parent has groups ({parent.num_groups}) already; name a model without"
        )
    elif group_size < 1 or parent.num_experts % group_size:
        sizes = [n for n in range(1, parent.num_experts + 1) if parent.num_experts % n == 0]
        problems.append(
            f"--group-size ({group_size}) does not divide the experts ({parent.num_experts}); use "
            f"one of {', '.join(map(str, sizes))}"
        )
    if adjugate_ffn_hidden_size < 1:
        problems.append(
            f"--adjugate-ffn-hidden-size ({adjugate_ffn_hidden_size}) is not above 0; the release "
            "has 128"
        )
    if not 0 <= scale <= 1 / max(group_size, 1):
        problems.append(
            f"--adjugate-scale ({scale}) is not between 0 and groups / experts "
            f"({1 / max(group_size, 1):g}), the paper's bound; use a smaller one"
        )
    if problems:
        raise ConversionError(problems)
    return replace(
        parent,
        num_groups=parent.num_experts // group_size,
        adjugate_ffn_hidden_size=adjugate_ffn_hidden_size,
        adjugate_scale=scale,
        expert_bias=parent.normalized_topk and not parent.local_experts,
    )


def moe_architecture(
    parent: Architecture, num_experts: int, topk: int, granularity: int
) -> Architecture:
    """The child of a dense parent: all layers are MoE layers of ``num_experts`` x ``granularity``.

    Raises:
        ValueError: all that does not fit.
    """
    problems = []
    if parent.num_experts:
        problems.append(
            f"--num-experts ({num_experts}) is for dense parents; this one has "
            f"{parent.num_experts} experts"
        )
    if num_experts < 2:
        problems.append(f"--num-experts ({num_experts}) is not above 1")
    if not 1 <= topk <= num_experts:
        problems.append(f"--topk ({topk}) is not between 1 and --num-experts ({num_experts})")
    if granularity < 1 or parent.ffn_hidden_size % max(granularity, 1):
        problems.append(
            f"--granularity ({granularity}) does not divide the width of the parent's MLP "
            f"({parent.ffn_hidden_size})"
        )
    if problems:
        raise ConversionError(problems)
    return replace(
        parent,
        moe_layers=(True,) * parent.num_layers,
        ffn_hidden_size=0,
        num_experts=num_experts * granularity,
        moe_ffn_hidden_size=parent.ffn_hidden_size // granularity,
        topk=topk * granularity,
        normalized_topk=True,
    )


def grove_child(
    parent: Source,
    group_size: int,
    adjugate_ffn_hidden_size: int,
    adjugate_scale: float,
    grouping: Path | None,
    seed: int,
) -> Source:
    """A source with experts as a Grove MoE source.

    Raises:
        ValueError: all that does not fit.
    """
    architecture = grove_architecture(
        parent.architecture, group_size, adjugate_ffn_hidden_size, adjugate_scale
    )
    if grouping is not None and architecture.local_experts:
        raise ValueError(
            f"--grouping ({grouping}) is not handled beside experts without an FFN, whose columns "
            "of the router would stay; leave it out"
        )
    groups = None if grouping is None else read_grouping(grouping, architecture)
    child = GroveChild(
        parent.weights,
        architecture,
        seed,
        grouping=groups,
        parent_architecture=parent.architecture,
    )
    return _source(parent, child, architecture)


def moe_child(parent: Source, num_experts: int, topk: int, granularity: int, seed: int) -> Source:
    """A dense Qwen3 source as a Qwen3-MoE source.

    Raises:
        ValueError: all that does not fit.
    """
    architecture = moe_architecture(parent.architecture, num_experts, topk, granularity)
    return _source(parent, MoeChild(parent.weights, architecture, seed, granularity), architecture)


def _source(parent: Source, child: GroveChild | MoeChild, architecture: Architecture) -> Source:
    copies = {name: child.parents_name(name) for name in child.infos() if child.is_copy(name)}
    return replace(
        parent,
        weights=child,
        architecture=architecture,
        checksums={
            name: parent.checksums[source]
            for name, source in copies.items()
            if source in parent.checksums
        },
        # Nothing of the parent is skipped under the names of the child.
        problems=[
            Problem(line)
            for line in [
                *(problem.line for problem in parent.problems),
                *_absent_tensors(parent, child),
                *_hidden_tensors(parent, child),
            ]
        ],
        generated=parent.generated | child.generated,
    )


def _absent_tensors(parent: Source, child: GroveChild | MoeChild) -> list[str]:
    """Tensors that the parent lacks and the child has under other names, so nobody else says so."""
    there = parent.infos()
    sources = {child.parents_name(name): name for name in child.infos()}
    return [
        f"{source} (absent) is needed of the parent; add it"
        for source, name in sources.items()
        if source not in (None, name) and source not in there
    ]


def _hidden_tensors(parent: Source, child: GroveChild | MoeChild) -> list[str]:
    """Tensors of the parent that its model does not have, and that the child's would replace."""
    there = parent.infos()
    unknown = there.keys() - hf_shapes(parent.architecture).keys()
    replaced = {name for name in child.infos() if child.parents_name(name) != name}
    return [
        f"{name} in {there[name].origin} is not known to the parent's model, and the "
        "child has another one; remove it"
        for name in sorted(unknown & replaced)
    ]


def read_grouping(file: Path, architecture: Architecture) -> Grouping:
    """Groups of experts from JSON: a list of groups for all layers, or an object with one for each.

    Args:
        file: ``[[0, 5], [1, 7], ...]`` or ``{"0": [[0, 5], ...], "1": ...}``; numbers of the
            parent's experts, every one in one group.
        architecture: of the child.

    Raises:
        ValueError: everything that is wrong with it.
    """
    moe_layers = [i for i, is_moe in enumerate(architecture.moe_layers) if is_moe]
    content = _read_json(file)
    of_layer = content
    if isinstance(content, list):
        of_layer = {str(layer): content for layer in moe_layers}
    if not isinstance(of_layer, dict):
        raise ValueError(f"--grouping ({file}) is neither a list of groups nor an object of layers")
    problems = [
        f"--grouping ({file}) names a layer {brief(repr(layer))}, which is no MoE layer; remove it"
        for layer in sorted(of_layer.keys() - {str(i) for i in moe_layers})
    ]
    size = architecture.num_experts // architecture.num_groups
    grouping = {}
    for layer in moe_layers:
        groups = of_layer.get(str(layer))
        if wrong := _wrong_groups(groups, architecture.num_experts, size):
            problems += [f"--grouping ({file}), layer {layer}: {line}" for line in wrong]
        else:
            assert isinstance(groups, list)
            grouping[layer] = [expert for group in groups for expert in group]
    if problems:
        raise ConversionError(problems)
    return grouping


def _read_json(file: Path) -> object:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            # Python would take the last.
            raise ValueError(f"layers {brief(twice)} are there twice")
        return dict(pairs)

    try:
        content: object = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=once)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"--grouping ({file}) cannot be read: {error}") from error
    return content


def _wrong_groups(groups: object, num_experts: int, size: int) -> list[str]:
    if groups is None:
        return ["its groups (absent) are needed; add them"]
    if not isinstance(groups, list) or not all(isinstance(group, list) for group in groups):
        return [f"its groups ({brief(groups)}) are not a list of lists of experts"]
    problems = [
        f"group {brief(group)} has {len(group)} experts, not --group-size ({size})"
        for group in groups
        if len(group) != size
    ]
    experts = [expert for group in groups for expert in group]
    # True == 1 == 1.0, but only one of them is an expert's number.
    numbers = [e for e in experts if type(e) is int and 0 <= e < num_experts]
    if unknown := [e for e in experts if type(e) is not int or not 0 <= e < num_experts]:
        problems.append(
            f"{brief(unknown)} are not experts; their numbers go from 0 to {num_experts - 1}"
        )
    if twice := sorted({e for e in numbers if numbers.count(e) > 1}):
        problems.append(f"experts {brief(twice)} are there twice; each belongs in one group")
    if missing := sorted(set(range(num_experts)) - set(numbers)):
        problems.append(f"experts {brief(missing)} are in no group; each belongs in one")
    return problems
