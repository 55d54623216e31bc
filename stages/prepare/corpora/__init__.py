"""One module per corpus, each with `read(settings, language) -> Corpus`."""

from stages.prepare import settings as kinds
from stages.prepare.corpora import common_voice, dataset, fish_fillets, fleurs, manifest
from stages.prepare.items import SPLITS, Corpus
from stages.prepare.settings import CorpusSettings


def read_corpus(settings: CorpusSettings, language: str) -> Corpus:
    """language: a code such as "cs". Raises PipelineError where the corpus is not there or not as expected."""
    match settings:
        case kinds.FishFilletsSettings():
            corpus = fish_fillets.read(settings, language)
        case kinds.CommonVoiceSettings():
            corpus = common_voice.read(settings, language)
        case kinds.FleursSettings():
            corpus = fleurs.read(settings, language)
        case kinds.DatasetSettings():
            corpus = dataset.read(settings, language)
        case kinds.ManifestSettings():
            corpus = manifest.read(settings, language)
    assert set(corpus.splits) <= set(SPLITS)
    return corpus
