"""The corpora that can be read. The module of each holds its settings class and `read(settings, language, wanted)`."""

from collections.abc import Collection
from dataclasses import replace
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.prepare.corpora.settings import CorpusBase
    from stages.prepare.items import Corpus

# What `corpus` is called in the parameters: the name of the settings class, in the module called alike. The modules are
# imported where one is needed: the command line lists the names without them.
CORPORA = {
    "fish-fillets": "FishFilletsSettings",
    "common-voice": "CommonVoiceSettings",
    "fleurs": "FleursSettings",
    "dataset": "DatasetSettings",
    "manifest": "ManifestSettings",
}


def _module(name: str) -> ModuleType:
    return import_module(f"{__name__}.{name.replace('-', '_')}")


def settings_class(name: str) -> "type[CorpusBase]":
    """Returns the class of a corpus' settings. name: a key of CORPORA."""
    return getattr(_module(name), CORPORA[name])


def read_corpus(settings: "CorpusBase", language: str, wanted: Collection[str] | None = None) -> "Corpus":
    """Returns the corpus' `wanted` splits (None: all), as far as it has them or they can be drawn.

    language: a code such as "cs". Where a corpus lies in a file for each split, only those of `wanted` are loaded.
    Raises PipelineError where the corpus is not there or not as expected.
    """
    from stages.prepare.corpora.splits import shared
    from stages.prepare.items import SPLITS

    wanted = SPLITS if wanted is None else wanted
    corpus: Corpus = _module(settings.corpus).read(settings, language, wanted)
    assert set(corpus.splits) <= set(SPLITS)
    splits = {split: items for split, items in corpus.splits.items() if split in wanted}
    return replace(corpus, splits=splits, notes=[*corpus.notes, *shared(splits)])
