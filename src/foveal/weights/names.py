"""Name maps as data: published tensor names on the left, ours on the right, one rule a line.

    # a comment
    modules model.visual. as visual.
    tied lm_head.weight to model.embed_tokens.weight
    skip text_model.embeddings.position_ids
    visual.blocks.{i}.norm1.{weight,bias} -> vision.blocks.{i}.norm1.{weight,bias}
    a.q.{weight,bias} + a.k.{weight,bias} + a.v.{weight,bias} -> b.qkv.{weight,bias}
    text_projection ^T -> text.head.weight
    embeddings.cls_token ^11 -> vision.class_token

`{i}` stands for a layer number. `{a,b}` is short for one rule per choice; the n-th choice on the left goes with the
n-th on the right. `+` joins the rows (first dimension) of several published tensors of one shape, in order; ours is
cut into equal shares again when it is written. `^T` after a published name says that the matrix, or each of a stack
of matrices, is stored transposed, `^1` (`^11`) that the tensor is stored with one (two) more dimensions of size 1 in
front. `read PREFIX as PREFIX` names a second spelling that some library releases write: it is read as the official
one and never written. `modules PREFIX as PREFIX` does the same, and says that today's libraries call their modules
so: adapters are written in that spelling. `tied COPY to ORIGINAL` says that a model may leave out the copy and use
the original's value. `skip NAME` is a tensor of some releases that holds nothing to learn, such as a row of position
numbers: it is neither read nor written. The way from our names back to the published ones is derived, so a map that
is not one to one is an error when it is read.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from foveal.core.errors import ConfigError

_NUMBER = re.compile(r"[0-9]+")
_GROUP = re.compile(r"\{([^{}]*)\}")
_PLAIN = re.compile(r"[A-Za-z0-9_.\-]*")
_READ = re.compile(r"(read|modules)\s+(\S+)\s+as\s+(\S+)")
_TIED = re.compile(r"tied\s+(\S+)\s+to\s+(\S+)")
_SKIP = re.compile(r"skip\s+(\S+)")
_MARKED = re.compile(r"(.*?)\s*\^(T|1+)")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One line of a map after its choices are spelled out; `{name}` placeholders are left in.

    Attributes:
        published: the published name; several when their rows are joined.
        transposed: for each of them, whether it is stored as the transposed matrix.
        ones: for each of them, how many dimensions of size 1 it has in front of ours.
        ours: our name.
        line: where it stands.
    """

    published: tuple[str, ...]
    transposed: tuple[bool, ...]
    ones: tuple[int, ...]
    ours: str
    line: int


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a published tensor goes: share `share` of `shares` equal ones of the rows of our tensor.

    It may be `transposed`, or have `ones` further dimensions of size 1 in front.
    """

    ours: str
    share: int = 0
    shares: int = 1
    transposed: bool = False
    ones: int = 0


@dataclass(frozen=True, kw_only=True)
class _Direction:
    """Rules keyed by the shape of the name they match, in which every number reads `#`."""

    rules: Mapping[str, tuple[tuple[re.Pattern[str], Rule, int], ...]]

    def find(self, name: str) -> tuple[Rule, int, dict[str, str]] | None:
        """The rule of a name, which of the rule's names it is, and the numbers for the placeholders."""
        for pattern, rule, share in self.rules.get(_NUMBER.sub("#", name), ()):
            if match := pattern.fullmatch(name):
                return rule, share, match.groupdict()
        return None


@dataclass(frozen=True, kw_only=True)
class NameMap:
    """Translates tensor names between a published checkpoint and our modules, one to one.

    Attributes:
        where: file name or other origin, for errors.
        rules: every rule, choices spelled out.
        readings: (other prefix, official prefix) pairs; longer prefixes are tried first.
        modules: those readings whose first spelling is that of the modules of today's libraries; longer official
            prefixes first.
        ties: our name of a tensor that a model may leave out -> our name of the tensor whose value it shares.
        skipped: patterns of published tensors that are left alone.
    """

    where: str
    rules: tuple[Rule, ...]
    readings: tuple[tuple[str, str], ...]
    modules: tuple[tuple[str, str], ...]
    ties: Mapping[str, str]
    skipped: tuple[str, ...]
    _to_ours: _Direction
    _to_skip: _Direction
    _to_published: _Direction

    @classmethod
    def parse(cls, text: str, where: str = "name map") -> "NameMap":
        """Reads a map from its text. Raises `ConfigError` with the line when a rule is broken or not unique."""
        rules: list[Rule] = []
        readings: list[tuple[str, str]] = []
        modules: list[tuple[str, str]] = []
        ties: list[tuple[str, str]] = []
        skips: list[Rule] = []
        for number, raw in enumerate(text.splitlines(), start=1):
            line = raw.partition("#")[0].strip()
            left, arrow, right = line.partition("->")
            if arrow:
                rules.extend(_spell_out(left.strip(), right.strip(), f"{where}:{number}", number))
            elif reading := _READ.fullmatch(line):
                readings.append((reading[2], reading[3]))
                modules += [(reading[2], reading[3])] if reading[1] == "modules" else []
            elif tie := _TIED.fullmatch(line):
                ties.append((tie[1], tie[2]))
            elif skip := _SKIP.fullmatch(line):
                for name in _choices(skip[1], f"{where}:{number}"):
                    _placeholders(name, f"{where}:{number}")
                    skips.append(Rule(published=(name,), transposed=(False,), ones=(0,), ours="", line=number))
            elif line:
                raise ConfigError(
                    f"{where}:{number}: {line!r} is no rule; write `published -> ours`, `read PREFIX as PREFIX`, "
                    "`tied COPY to ORIGINAL` or `skip NAME`."
                )
        if not rules:
            raise ConfigError(f"{where} holds no rule; add lines of the form `published -> ours`.")
        _refuse_overlaps([(name, r.line) for r in (*rules, *skips) for name in r.published], where)
        _refuse_overlaps([(r.ours, r.line) for r in rules], where)
        for other, _ in readings:
            for rule in (*rules, *skips):
                for name in rule.published:
                    if name.startswith(other):
                        raise ConfigError(
                            f"{where}:{rule.line}: {name!r} begins with {other!r}, which `read {other}` renames; "
                            "drop one of the two."
                        )
        to_ours = _direction((name, r, share) for r in rules for share, name in enumerate(r.published))
        places = {name: _place(to_ours, name) for name in itertools.chain(*ties)}
        for name, place in places.items():
            if place is None:
                raise ConfigError(f"{where}: `tied` names {name!r}, for which there is no rule; add one.")
            if place.shares > 1 or place.transposed or place.ones:
                raise ConfigError(
                    f"{where}: `tied` names {name!r}, which is joined or transposed or marked ^1; tie whole tensors."
                )
        return cls(
            where=where,
            rules=tuple(rules),
            readings=tuple(sorted(readings, key=lambda pair: -len(pair[0]))),
            modules=tuple(sorted(modules, key=lambda pair: -len(pair[1]))),
            ties={one.ours: two.ours for copy, original in ties if (one := places[copy]) and (two := places[original])},
            skipped=tuple(name for r in skips for name in r.published),
            _to_ours=to_ours,
            _to_skip=_direction((name, r, 0) for r in skips for name in r.published),
            _to_published=_direction((r.ours, r, 0) for r in rules),
        )

    @classmethod
    def load(cls, path: Path) -> "NameMap":
        """The map in the file `path`."""
        try:
            return cls.parse(path.read_text(encoding="utf-8"), where=path.name)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read as a name map: {error}") from None

    def official(self, published: str) -> str:
        """The official spelling of a published name; other names come back unchanged."""
        for other, prefix in self.readings:
            if published.startswith(other):
                return prefix + published[len(other) :]
        return published

    def module_path(self, published: str) -> str:
        """An official published name, or the beginning of one, as the modules of today's libraries spell it."""
        for other, prefix in self.modules:
            if published.startswith(prefix):
                return other + published[len(prefix) :]
        return published

    def ours(self, published: str) -> str | None:
        """Our name of a published tensor in any spelling that is read; None when no rule matches."""
        place = self.place(published)
        return place.ours if place else None

    def place(self, published: str) -> Place | None:
        """Where a published tensor goes, in any spelling that is read; None when no rule matches."""
        return _place(self._to_ours, self.official(published))

    def skips(self, published: str) -> bool:
        """Whether a published tensor is one that is left alone."""
        return self._to_skip.find(self.official(published)) is not None

    def sources(self, ours: str) -> Mapping[str, Place] | None:
        """The official published names whose values make up one of our tensors, in order; None without a rule."""
        found = self._to_published.find(ours)
        if found is None:
            return None
        rule, _, numbers = found
        return {name.format(**numbers): _share(rule, ours, share) for share, name in enumerate(rule.published)}

    def published(self, ours: str) -> str | None:
        """The official published name of one of our tensors, those of a joined one with ` + ` between; None
        when no rule matches."""
        sources = self.sources(ours)
        return None if sources is None else " + ".join(sources)


def _place(to_ours: _Direction, official: str) -> Place | None:
    found = to_ours.find(official)
    if found is None:
        return None
    rule, share, numbers = found
    return _share(rule, rule.ours.format(**numbers), share)


def _share(rule: Rule, ours: str, share: int) -> Place:
    """The place of a rule's published name number `share`."""
    return Place(
        ours=ours, share=share, shares=len(rule.published), transposed=rule.transposed[share], ones=rule.ones[share]
    )


def _spell_out(left: str, right: str, where: str, line: int) -> list[Rule]:
    """The rules that one line stands for: its n-th choices on both sides, put together."""
    terms = [term.strip() for term in left.split("+")]
    marks = [_MARKED.fullmatch(term) for term in terms]
    lefts = [_choices(mark[1] if mark else term, where) for term, mark in zip(terms, marks, strict=True)]
    rights = _choices(right, where)
    for names in lefts:
        if len(names) != len(rights):
            raise ConfigError(
                f"{where}: {len(names)} names on the left but {len(rights)} on the right; give each its own."
            )
    rules = []
    for *several, other in zip(*lefts, rights, strict=True):
        wanted = _placeholders(other, where)
        for one in several:
            if set(given := _placeholders(one, where)) != set(wanted):
                raise ConfigError(
                    f"{where}: {one!r} has the placeholders {given} but {other!r} has {wanted}; "
                    "use the same on both sides."
                )
        kinds = [mark[2] if mark else "" for mark in marks]
        rules.append(
            Rule(
                published=tuple(several),
                transposed=tuple(kind == "T" for kind in kinds),
                ones=tuple(kind.count("1") for kind in kinds),
                ours=other,
                line=line,
            )
        )
    return rules


def _choices(pattern: str, where: str) -> list[str]:
    """`a.{x,y}` as `a.x` and `a.y`; a pattern without choices as itself."""
    groups = [g for g in _GROUP.finditer(pattern) if "," in g[1]]
    if len(groups) > 1:
        raise ConfigError(f"{where}: {pattern!r} has {len(groups)} lists of choices, at most one a side is read.")
    if not groups:
        return [pattern]
    options = [option.strip() for option in groups[0][1].split(",")]
    if not all(options):
        raise ConfigError(f"{where}: {pattern!r} has an empty choice.")
    return [pattern[: groups[0].start()] + option + pattern[groups[0].end() :] for option in options]


def _placeholders(pattern: str, where: str) -> list[str]:
    """Names of the `{name}` placeholders of `pattern`; checks that the pattern is well formed."""
    names = [g[1] for g in _GROUP.finditer(pattern)]
    for name in names:
        if not name.isidentifier():
            raise ConfigError(f"{where}: {{{name}}} in {pattern!r} is no placeholder; write {{i}} or {{a,b}}.")
    if len(set(names)) != len(names):
        raise ConfigError(f"{where}: {pattern!r} uses a placeholder twice; give the second its own name.")
    plain = _GROUP.sub("", pattern)
    if not pattern or not _PLAIN.fullmatch(plain):
        raise ConfigError(f"{where}: {pattern!r} is no tensor name.")
    # Next to another number, a placeholder's digits could be split in more than one way.
    if re.search(r"[0-9}]\{|\}[0-9]", pattern):
        raise ConfigError(f"{where}: in {pattern!r} a placeholder touches another number; put a dot between.")
    return names


def _direction(entries: Iterable[tuple[str, Rule, int]]) -> _Direction:
    """Rules by the (pattern of a name, rule, which of the rule's names) that finds them."""
    rules: dict[str, tuple[tuple[re.Pattern[str], Rule, int], ...]] = {}
    for source, rule, share in entries:
        parts = _GROUP.split(source)  # text, placeholder, text, placeholder, ... text
        regex = "".join(f"(?P<{part}>0|[1-9][0-9]*)" if odd % 2 else re.escape(part) for odd, part in enumerate(parts))
        shape = _NUMBER.sub("#", _GROUP.sub("#", source))
        rules[shape] = (*rules.get(shape, ()), (re.compile(regex), rule, share))
    return _Direction(rules=rules)


def _refuse_overlaps(patterns: list[tuple[str, int]], where: str) -> None:
    """Raises when some name could match two patterns. Exact: patterns differ in text or in a fixed number."""
    seen: dict[str, list[tuple[list[str], str, int]]] = {}
    for pattern, line in patterns:
        plain = _GROUP.sub("#", pattern)
        numbers = re.findall(r"[0-9]+|#", plain)
        same_shape = seen.setdefault(_NUMBER.sub("#", plain), [])
        for other_numbers, other, other_line in same_shape:
            if all(a == b or "#" in (a, b) for a, b in zip(numbers, other_numbers, strict=True)):
                raise ConfigError(
                    f"{where}:{line}: {pattern!r} and {other!r} (line {other_line}) match the same names; drop one."
                )
        same_shape.append((numbers, pattern, line))
