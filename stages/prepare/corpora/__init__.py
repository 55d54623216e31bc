"""One module per corpus, each with `read(settings, language, wanted) -> Corpus`."""

from collections.abc import Collection
from dataclasses import replace

from stages.prepare import settings as kinds
from stages.prepare.corpora import common_voice, dataset, fish_fillets, fleurs, manifest
from stages.prepare.corpora.splits import shared
from stages.prepare.items import SPLITS, Corpus
from stages.prepare.settings import CorpusSettings


def read_corpus(settings: CorpusSettings, language: str, wanted: Collection[str] = SPLITS) -> Corpus:
    """The corpus's `wanted` splits, as far as it has them or they can be drawn; no others are loaded where that is possible.

    language: a code such as "cs". Raises PipelineError where the corpus is not there or not as expected.
    """
    match settings:
        case kinds.FishFilletsSettings():
            corpus = fish_fillets.read(settings, language)
        case kinds.CommonVoiceSettings():
            corpus = common_voice.read(settings, language, wanted)
        case kinds.FleursSettings():
            corpus = fleurs.read(settings, language, wanted)
        case kinds.DatasetSettings():
            corpus = dataset.read(settings, language, wanted)
        case kinds.ManifestSettings():
            corpus = manifest.read(settings, language)
    assert set(corpus.splits) <= set(SPLITS)
    splits = {split: items for split, items in corpus.splits.items() if split in wanted}
    return replace(corpus, splits=splits, notes=[*corpus.notes, *shared(splits)])
