"""data.json of a build or an inspection as its report reads it: all fields optional."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from palate.store.records import Interval, Record

Counts = dict[str, int]
Bars = tuple[tuple[float, float, int], ...]


class Source(Record):
    """One source: read = kept + rejected + dropped + merged + not_selected, in rows, and
    pairs_made = pairs + pairs_dropped + pairs_not_selected."""

    name: str = "data"
    path: str | None = None
    format: str | None = None
    recognised: str | None = None
    licence: str | None = None
    sha256: str | None = None
    available: int | None = None
    read: int = 0
    kept: int = 0
    rejected: Counts = Field(default_factory=dict)
    dropped: Counts = Field(default_factory=dict)
    merged: int = 0
    not_selected: int = 0
    responses_left_out: Counts = Field(default_factory=dict)
    scored_by: Counts = Field(default_factory=dict)
    flips: Counts = Field(default_factory=dict)
    pairs_made: int | None = None
    pairs_refused: Counts = Field(default_factory=dict)
    pairs_dropped: Counts = Field(default_factory=dict)
    pairs_not_selected: int = 0
    pairs: int | None = None
    pairs_eval: int = 0

    @property
    def accounted(self) -> int:
        lost = sum(self.rejected.values()) + sum(self.dropped.values())
        return self.kept + lost + self.merged + self.not_selected

    @property
    def reconciles(self) -> bool:
        """Whether rows, and pairs where they are counted, add up."""
        if self.pairs_made is None or self.pairs is None:
            return self.read == self.accounted
        pairs = self.pairs + sum(self.pairs_dropped.values()) + self.pairs_not_selected
        return self.read == self.accounted and self.pairs_made == pairs


class EvaluationSet(Record):
    """Of `decontaminate`: what of an evaluation set is in the pairs."""

    prompts: int | None = None
    prompts_found: int = 0
    pairs: Counts = Field(default_factory=dict)
    by_source: dict[str, Counts] = Field(default_factory=dict)
    most_pairs_of_a_prompt: int = 0
    without_prompt: int = 0
    too_short: int = 0
    images_not_read: int = 0


class Step(Record):
    """One line of `curate`, as it went."""

    step: str = "step"
    name: str | None = None
    recipe: dict[str, Any] = Field(default_factory=dict)
    before: int = 0
    after: int = 0
    dropped: Counts = Field(default_factory=dict)
    changed: Counts = Field(default_factory=dict)
    by_source: dict[str, Counts] = Field(default_factory=dict)
    account: dict[str, Any] = Field(default_factory=dict)

    @property
    def title(self) -> str:
        return self.name or self.step

    @property
    def lost(self) -> int:
        return sum(self.dropped.values())


class Share(Record):
    """One side against the other; the share is that of the first."""

    share: float | None = None
    ci: Interval | None = None


class LengthShare(Share):
    longer: int = 0
    shorter: int = 0


class LengthGroup(LengthShare):
    """Pairs whose lengths differ by `from` to below `below` characters."""

    low: int = Field(default=0, alias="from")
    below: int | None = None


class LengthLabel(LengthShare):
    equal: int = 0
    auc: float | None = None
    by_difference: tuple[LengthGroup, ...] = ()


class Lengths(Record):
    mean: float | None = None
    min: float | None = None
    max: float | None = None
    quantiles: dict[str, float | None] = Field(default_factory=dict)
    histogram: Bars = ()


class Feature(Share):
    name: str = ""
    chosen: int = 0
    rejected: int = 0
    more: int = 0
    less: int = 0


class Opening(Share):
    text: str = ""
    more: int = 0
    less: int = 0


class SameResponse(Record):
    opening: str = ""
    prompts: int = 0
    chosen: int = 0
    rejected: int = 0


class Together(Share):
    pairs: int = 0


class Style(Record):
    pairs: int = 0
    features: tuple[Feature, ...] = ()
    openings: tuple[Opening, ...] = ()
    together: Together | None = None
    same_response: tuple[SameResponse, ...] = ()


class Times(Record):
    low: int = Field(default=1, alias="from")
    to: int | None = None
    prompts: int = 0
    pairs: int = 0


class Prompts(Record):
    distinct: int = 0
    repeated: int = 0
    most: int = 0
    pairs_by_times: tuple[Times, ...] = ()


class Groups(Record):
    pairs: int = 0
    groups: int = 0
    largest: int = 0


class Margin(Record):
    pairs: int = 0
    missing: int = 0
    negative: int = 0
    zero: int = 0
    mean: float | None = None
    min: float | None = None
    max: float | None = None
    histogram: Bars = ()


class Template(Record):
    problems: Counts = Field(default_factory=dict)
    marks: Counts = Field(default_factory=dict, alias="found")


class Scripts(Record):
    prompt: Counts = Field(default_factory=dict)
    chosen: Counts = Field(default_factory=dict)
    rejected: Counts = Field(default_factory=dict)
    chosen_differs: int = 0
    rejected_differs: int = 0


class Generator(Share):
    name: str = ""
    wins: int = 0
    losses: int = 0


class Generators(Record):
    names: tuple[Generator, ...] = ()
    more: int = 0
    responses_of_others: int = 0


class UnderPrompts(Record):
    """Distinct images, and those of them that are in several different prompts."""

    images: int = 0
    several: int = 0
    share: float | None = None
    most: int = 0


class Blind(Record):
    """How far answers go by the question alone; see `palate.data.audit.seen`."""

    pairs: int = 0
    questions: int = 0
    pairs_of_questions: int = 0
    same: int = 0
    same_share: float | None = None
    decided: int = 0
    right: int = 0
    right_share: float | None = None
    ci: Interval | None = None


class Images(Record):
    pairs: int = 0
    seen: int = 0
    distinct: int = 0
    repeated: int = 0
    most: int = 0
    by_number: Counts = Field(default_factory=dict)
    prompts: UnderPrompts = UnderPrompts()
    blind: Blind = Blind()


class Spread(Record):
    min: float | None = None
    p5: float | None = None
    p50: float | None = None
    p95: float | None = None
    max: float | None = None


class BothSplits(Record):
    """Images of held-out pairs, and those of them that training pairs have, too."""

    images: int = 0
    in_train: int = 0
    pairs: int = 0
    pairs_in_train: int = 0


class ImageFiles(Record):
    """Every image that was read; sizes are of distinct ones."""

    read: int = 0
    used: int = 0
    unique: int = 0
    repeated: int = 0
    most_often: int = 0
    broken: Counts = Field(default_factory=dict)
    bytes: int = 0
    formats: Counts = Field(default_factory=dict)
    width: Spread | None = None
    height: Spread | None = None
    longer_side: Bars = ()
    aspect: Bars = ()
    held_out: BothSplits | None = None

    @property
    def refused(self) -> int:
        return sum(self.broken.values())


class Text(Record):
    """A window of a text: characters left out before and after."""

    text: str = ""
    before: int = 0
    after: int = 0
    generator: str | None = None
    rating: float | None = None


class Example(Record):
    kind: str = "example"
    id: str = ""
    row: int | None = None
    tie: bool = False
    margin: float | None = None
    images: int = 0
    digests: tuple[str, ...] = ()
    prompt: Text = Text()
    chosen: Text = Text()
    rejected: Text = Text()


class Summary(Record):
    """What an audit says of one source, or of all."""

    pairs: int = 0
    ties: int = 0
    identical: int = 0
    chats: int = 0
    several_turns: int = 0
    turns: Counts = Field(default_factory=dict)
    prompts: Prompts = Prompts()
    duplicates: Groups = Groups()
    contradictions: Groups = Groups()
    length: dict[str, dict[str, Lengths]] = Field(default_factory=dict)
    length_label: dict[str, LengthLabel] = Field(default_factory=dict)
    style: Style = Style()
    margin: Margin = Margin()
    template: Template = Template()
    characters: dict[str, Counts] = Field(default_factory=dict)
    scripts: Scripts = Scripts()
    generators: Generators = Generators()
    images: Images = Images()
    examples: tuple[Example, ...] = ()

    @property
    def label(self) -> LengthLabel:
        """Length against label, in characters."""
        return self.length_label.get("characters", LengthLabel())


class Shared(Record):
    a: str = ""
    b: str = ""
    prompts: int = 0
    images: int = 0


class Across(Record):
    shared_prompts: tuple[Shared, ...] = ()
    shared_images: tuple[Shared, ...] = ()


class Findings(Record):
    """What `palate.data.audit.Audit.result` gives."""

    confidence: float = 0.95
    sample: int = 0
    overall: Summary = Summary()
    sources: dict[str, Summary] = Field(default_factory=dict)
    across: Across = Across()


class BeforeAfter(Record):
    before: Findings | None = None
    after: Findings | None = None


class Split(Record):
    pairs: int = 0
    prompts: int | None = None
    by_source: Counts = Field(default_factory=dict)


class Built(Record):
    """data.json of `palate data build` (kind `build`) and `palate data inspect` (`inspect`)."""

    kind: str = "build"
    sources: tuple[Source, ...] = ()
    steps: tuple[Step, ...] = ()
    mixture: dict[str, Any] | None = None
    images: ImageFiles | None = None
    train: Split | None = None
    eval: Split | None = None
    output: dict[str, Any] | None = None
    audit: BeforeAfter = BeforeAfter()

    @property
    def inspects(self) -> bool:
        return self.kind == "inspect"

    @property
    def findings(self) -> Findings:
        """Of what came out, or of what was looked at."""
        return self.audit.after or self.audit.before or Findings()
