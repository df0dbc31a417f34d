"""What pipeline stages, and the chunks of virtual ones, need of layers and microbatches."""

from argparse import Namespace
from collections.abc import Iterator

from ...checks.flags import flag_of
from ...checks.problem import Problem
from ...checks.rules import Check
from ..pipeline import chunks_in_letters
from ..sizes import model_chunks, split_layers


def virtual_batch(args: Namespace, microbatches: int, of: str, flag: str) -> Iterator[Problem]:
    """Do virtual stages get the microbatches they need, by the flag that says how many?

    Megatron says it in the first iteration, or evaluation (schedules.py:1134 @ 0.19.2).
    """
    check = Check(args)
    stages = args.pipeline_model_parallel_size
    if stages == 1 or model_chunks(args) <= 1:
        return
    group = args.microbatch_group_size_per_vp_stage or stages
    if not stages <= group <= microbatches or 0 < microbatches % group < stages:
        yield Problem(
            f"microbatches of {of}",
            microbatches,
            f"do not fit virtual stages in groups of ({group}): use at least "
            f"{check.said('pipeline_model_parallel_size')} of them, and a multiple of the group; "
            f"change {check.said(flag)}",
            about=("--pipeline-model-parallel-size", flag_of(flag)),
        )


_VIRTUAL = (
    "num_layers_per_virtual_pipeline_stage",
    "num_virtual_stages_per_pipeline_rank",
    "pipeline_model_parallel_layout",
)


def pipeline(args: Namespace, _: int = 1) -> Iterator[Problem]:
    """Layers over stages, and over their chunks."""
    stages, layers = args.pipeline_model_parallel_size, split_layers(args)
    check = Check(args, num_layers=layers)
    given = [name for name in _VIRTUAL if getattr(args, name) is not None]
    if len(given) > 1:
        all_of_them = " and ".join(f"{{{name}}}" for name in given)
        yield check.problem(f"{all_of_them} say the same; give one of them")
        return
    if args.pipeline_model_parallel_layout is not None:
        yield from _letters(args)
        yield from _of_chunks(args)
        return
    uneven = [name for name in _UNEVEN if getattr(args, name) is not None]
    if uneven:
        fix = "use --num-virtual-stages-per-pipeline-rank"
        excluded = [*check.excludes("num_layers_per_virtual_pipeline_stage", uneven[0], fix)]
        yield from excluded or _uneven(args, uneven)
        return
    if layers % stages:
        yield check.problem(
            "{num_layers} is not a multiple of {pipeline_model_parallel_size}; use a size that "
            "divides it, or --decoder-first-pipeline-num-layers"
        )
        return
    for name in given:
        if layers // stages % getattr(args, name):
            yield check.problem(
                f"{{{name}}} does not divide the layers of a stage ({layers // stages}); use a "
                "number that does"
            )
            return
    yield from _of_chunks(args)


COUNTED = ("account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split")
_UNEVEN = ("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers")


def _of_chunks(args: Namespace) -> Iterator[Problem]:
    """Stages that chunks need, by the flag that makes them."""
    stages, chunks = args.pipeline_model_parallel_size, model_chunks(args)
    check = Check(args)
    given = next((name for name in _VIRTUAL if getattr(args, name) is not None), "")
    if chunks > 1 and stages == 1:
        sentence = f"{{{given}}} needs {{pipeline_model_parallel_size}} above 1; remove it"
        yield check.problem(sentence)
    elif chunks > 1 and stages == 2 and not args.overlap_p2p_comm:
        yield check.problem(
            f"{{{given}}} needs {{pipeline_model_parallel_size}} above 2 without the overlap that "
            "--no-overlap-p2p-communication takes away; remove one of them"
        )
    if chunks <= 1:
        needs = "overlap_param_gather_with_optimizer_step"
        yield from check.those(
            {
                f"{{{needs}}} needs virtual pipeline stages; add them, or remove it": getattr(
                    args, needs
                )
            }
        )
    yield from check.those(
        {
            "{defer_embedding_wgrad_compute} needs {pipeline_model_parallel_size} above 1; remove "
            "it": args.defer_embedding_wgrad_compute and stages == 1,
        }
    )


def _uneven(args: Namespace, given: list[str]) -> Iterator[Problem]:
    """A first or last stage with layers of its own, and the stages between."""
    stages, chunks = args.pipeline_model_parallel_size, model_chunks(args)
    check = Check(args)
    for name in given:
        for other in COUNTED:
            yield from check.excludes(name, other, "remove one of them")
        yield from check.at_least(name, 1)
        if getattr(args, name) % chunks:
            yield check.problem(
                f"{{{name}}} is not a multiple of the chunks of a stage ({chunks}); change one of "
                "them"
            )
    between = stages - len(given)
    left = args.num_layers - sum(getattr(args, name) for name in given)
    named = " and ".join(f"{{{name}}}" for name in given)
    if between < 0 or left < 0 or bool(left) != bool(between):
        yield check.problem(
            f"{named} leave {left} of {{num_layers}} to {between} other stages of "
            "{pipeline_model_parallel_size}; change one of them"
        )
    elif between and left % between:
        yield check.problem(
            f"{named} leave {left} of {{num_layers}}, which are not a multiple of the other stages "
            f"({between}); change one of them"
        )
    elif between and left // between % chunks:
        yield check.problem(
            f"{named} leave {left // between} of {{num_layers}} to every other stage, which are "
            f"not a multiple of its chunks ({chunks}); change one of them"
        )
    yield from _of_chunks(args)


def _letters(args: Namespace) -> Iterator[Problem]:
    """A layout in letters: E embedding, t layer, m MTP layer, L loss, | the end of a chunk."""
    check = Check(args)
    letters, stages = args.pipeline_model_parallel_layout, args.pipeline_model_parallel_size
    chunks = chunks_in_letters(letters)
    whole = "".join(chunks)
    unknown = sorted(set(whole) - set("EtmL"))
    if unknown:
        yield check.problem(
            "{pipeline_model_parallel_layout} cannot be read: {unknown} is none of E, t, m, L and "
            "|; correct it",
            unknown=" ".join(unknown),
        )
        return
    for name in _UNEVEN + COUNTED:
        yield from check.excludes("pipeline_model_parallel_layout", name, "remove one of them")
    if len(chunks) % stages:
        yield check.problem(
            f"{{pipeline_model_parallel_layout}} has {len(chunks)} stages, not a multiple of "
            "{pipeline_model_parallel_size}; change one of them"
        )
        return
    layers, depths = args.num_layers, args.mtp_num_layers or 0
    of_mtp = [index for index, chunk in enumerate(chunks) if "m" in chunk]
    rules = {
        "does not begin with the only E, the embedding; write it once": (
            whole[:1] != "E" or whole.count("E") != 1
        ),
        "does not end with the only L, the loss; write it once": (
            whole[-1:] != "L" or whole.count("L") != 1
        ),
        f"has {whole.count('t')} layers, not {{num_layers}}; write as many t": (
            whole.count("t") != layers
        ),
        f"has {whole.count('m')} MTP layers, not {{mtp_num_layers}}; write as many m": (
            whole.count("m") != depths
        ),
        "has layers behind MTP layers; write m after every t": "m" in whole
        and "t" in whole[whole.index("m") :],
        "has its MTP layers in several chunks, or not in the last of a stage; write all m into "
        "one of the last": len(of_mtp) > 1 or any(i < len(chunks) - stages for i in of_mtp),
    }
    for text, is_so in rules.items():
        yield from check.those({f"{{pipeline_model_parallel_layout}} {text}": is_so})
