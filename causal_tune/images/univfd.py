"""The `univfd` layout: real and generated images in different folders, one real set shared by generators.

The test sets of UniversalFakeDetect (`diffusion_datasets`) hold generated images only, `<generator>/1_fake`,
and beside them real ones only, `imagenet/0_real` and `laion/0_real`. As in that paper's protocol, `guided` is
compared with ImageNet and every `ldm_*`, `glide_*` and `dalle` with LAION. In any other tree with one folder
of real images only, these are compared with every generator that has none of its own. Each real file is then
one entry for each of its generators. Class folders may also be called `real`/`fake` or `nature`/`ai`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from causal_tune.errors import IndexingError
from causal_tune.images.entries import GENERATED, REAL
from causal_tune.images.files import pure_path
from causal_tune.images.places import FORENSYNTHS_NAMES, SPLIT_NAMES, Assignment, Place, class_part
from causal_tune.images.walk import ImageFolder, Tree

__all__ = ["assign_univfd", "place_univfd"]

_Sets = Mapping[str, Mapping[int, Sequence[tuple[ImageFolder, Place]]]]
"""Name of a set -> label -> its folders."""


def place_univfd(root: PurePath, parts: Sequence[str]) -> Place | None:
    """Label, set and split of a folder; the root may be above the sets, one set, or its class folder.

    >>> place_univfd(PurePath("/data/diffusion_datasets"), ("ldm_100", "1_fake"))
    Place(label=1, generator='ldm_100', split='')
    >>> place_univfd(PurePath("/data/laion/0_real"), ())
    Place(label=0, generator='laion', split='')
    """
    above, label = class_part("folders", parts)
    names = [root.name, *above]
    if label is None:
        above, label = class_part("folders", (root.name,))
        names = [root.parent.name]
    if label is None:
        return None
    # ProGAN and others have folders of categories between their own and the class; one is called `train`
    known = next((i for i, name in enumerate(names) if name.lower() in FORENSYNTHS_NAMES), None)
    if known is not None:
        names = [*names[:known], names[known].lower()]
    splits = [name.lower() for name in names if name.lower() in SPLIT_NAMES]
    generators = [name for name in names if name.lower() not in SPLIT_NAMES] or names
    return Place(label=label, generator=generators[-1], split=splits[-1] if splits else "")


def assign_univfd(trees: Sequence[Tree]) -> Assignment:
    """The places of all class folders under all roots, with real sets shared.

    IndexingError where a generator has no real images and it is not known which to compare it with.
    """
    sets: defaultdict[str, defaultdict[int, list[tuple[ImageFolder, Place]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    num_outside = 0
    for tree in trees:
        for folder in tree.folders:
            place = place_univfd(pure_path(tree.root), folder.parts)
            if place is None:
                num_outside += len(folder.names)
            else:
                sets[place.generator][place.label].append((folder, place))
    real_only = sorted(name for name, classes in sets.items() if GENERATED not in classes)
    pairs = {name: _reals_of(name, real_only, sets) for name in sorted(sets) if REAL not in sets[name]}
    placed = [
        pair for name in sets if name not in real_only for label in sets[name] for pair in sets[name][label]
    ]
    for generator, reals in pairs.items():
        placed += [
            (folder, Place(label=REAL, generator=generator, split=place.split))
            for folder, place in sets[reals][REAL]
        ]
    return Assignment(
        placed=placed,
        num_outside=num_outside,
        unused=[folder for name in real_only if name not in pairs.values() for folder, _ in sets[name][REAL]],
        notes=tuple(
            f"Real images of {reals} ({_num_images(sets, reals):,}) are compared with each of: "
            f"{', '.join(name for name, its in pairs.items() if its == reals)}."
            for reals in real_only
            if reals in pairs.values()
        ),
    )


def _reals_of(generator: str, real_only: Sequence[str], sets: _Sets) -> str:
    """The set of real images that a generator without its own is compared with."""
    if len(real_only) == 1:
        return real_only[0]
    if not real_only:
        raise IndexingError(
            f"There are generated images of {generator}, but no folder of real images only to compare them with; "
            f"found {', '.join(sorted(sets))}. Add a root with real images, such as laion/0_real."
        )
    wanted = _protocol(generator)
    if found := [name for name in real_only if name.lower() == wanted]:
        return found[0]
    raise IndexingError(
        f"There are several folders of real images only, {', '.join(real_only)}, and no rule says which of them "
        f"{generator} is compared with (known: imagenet for guided; laion for ldm_*, glide_* and dalle). Name one "
        f"real folder a time, or write a CSV and use the layout csv: one row for each image and generator."
    )


def _protocol(generator: str) -> str | None:
    """The real set of UniversalFakeDetect's protocol."""
    name = generator.lower()
    if name == "guided":
        return "imagenet"
    return "laion" if name.startswith(("ldm_", "glide_", "dalle")) else None


def _num_images(sets: _Sets, name: str) -> int:
    return sum(len(folder.names) for pairs in sets[name].values() for folder, _ in pairs)
