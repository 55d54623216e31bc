"""FLEURS: read sentences in 102 languages, as released (TSV files and folders of WAV) or as the hub's Parquet."""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.prepare.corpora import rows
from stages.prepare.corpora.places import Places
from stages.prepare.corpora.settings import SplitShares
from stages.prepare.corpora.splits import with_all_splits
from stages.prepare.corpora.tables import TAB, read_table
from stages.prepare.items import SPLITS, Corpus, Item, unique_ids
from stages.shared.settings import PathOrUrl

REPOSITORY = "google/fleurs"
REVISION = "refs/convert/parquet"  # its main branch needs a loading script, which `datasets` no longer runs
FILES = {"train": "train", "validation": "dev", "test": "test"}
COLUMNS = ["id", "file_name", "raw_transcription", "transcription", "characters", "num_samples", "gender"]

# FLEURS' names. The part before the first "_" is the language code.
_COUNTRIES = """
    af_za am_et ar_eg as_in ast_es az_az be_by bg_bg bn_in bs_ba ca_es ceb_ph ckb_iq cs_cz cy_gb da_dk de_de el_gr en_us
    es_419 et_ee fa_ir ff_sn fi_fi fil_ph fr_fr ga_ie gl_es gu_in ha_ng he_il hi_in hr_hr hu_hu hy_am id_id ig_ng is_is
    it_it ja_jp jv_id ka_ge kam_ke kea_cv kk_kz km_kh kn_in ko_kr ky_kg lb_lu lg_ug ln_cd lo_la lt_lt luo_ke lv_lv mi_nz
    mk_mk ml_in mn_mn mr_in ms_my mt_mt my_mm nb_no ne_np nl_nl nso_za ny_mw oc_fr om_et or_in pa_in pl_pl ps_af pt_br
    ro_ro ru_ru sd_in sk_sk sl_si sn_zw so_so sr_rs sv_se sw_ke ta_in te_in tg_tj th_th tr_tr uk_ua umb_ao ur_pk uz_uz
    vi_vn wo_sn xh_za yo_ng zu_za
"""
# In the last line, codes of Whisper that differ.
CONFIGS = {name.partition("_")[0]: name for name in _COUNTRIES.split()} | {
    "zh": "cmn_hans_cn", "cmn": "cmn_hans_cn", "yue": "yue_hant_hk",
    "no": "nb_no", "jw": "jv_id", "tl": "fil_ph",
}  # fmt: skip


class FleursSettings(SplitShares):
    """FLEURS, as released (path) or from the hub (no path)."""

    corpus: Literal["fleurs"]
    path: PathOrUrl | None = None  # the folder with train.tsv, dev.tsv, test.tsv and the audio, or the one above it
    text: Literal["raw_transcription", "transcription"] = "raw_transcription"


def read(settings: FleursSettings, language: str, wanted: Collection[str] = SPLITS) -> Corpus:
    """Reads a release (all of its splits), or fetches the `wanted` splits from the hub.

    Raises PipelineError where FLEURS has no such language, or `path` holds no release.
    """
    config = CONFIGS.get(language)
    if config is None:
        raise PipelineError(f"FLEURS has no language '{language}'; it has {' '.join(sorted(CONFIGS))}")
    if settings.path is None:
        return _from_hub(settings, config, wanted)
    return with_all_splits(_from_release(settings.path, settings.text, config), settings.shares)


def _from_hub(settings: FleursSettings, config: str, wanted: Collection[str]) -> Corpus:
    """Fetches only the files of the `wanted` splits: a further test needs a tenth of the whole."""
    files = {split: f"{config}/{split}/*.parquet" for split in FILES if split in wanted}
    loaded = rows.load(REPOSITORY, revision=REVISION, data_files=files)
    columns = rows.Columns("audio", settings.text, None, "id")
    name, places = f"{REPOSITORY}/{config}", Places(Path())
    return Corpus({split: rows.items(found, columns, f"{name}/{split}", places) for split, found in loaded.items()})


def _from_release(path: AnyPath, text: str, config: str) -> Corpus:
    folder = next((folder for folder in (path, path / config) if (folder / "test.tsv").is_file()), None)
    if folder is None:
        raise PipelineError(f"{path}: no FLEURS release here, expected test.tsv, or {config}/test.tsv; correct `path`")
    splits = {}
    for split, name in FILES.items():
        if (folder / f"{name}.tsv").is_file():
            audio = _audio_folder(folder, name)
            lines = read_table(folder / f"{name}.tsv", TAB, [], COLUMNS).rows
            splits[split] = unique_ids([_item(folder, audio, line, line[text]) for line in lines])
    return Corpus(splits)


def _audio_folder(folder: AnyPath, name: str) -> str:
    """Returns the folder of the recordings, relative to `folder`."""
    for audio in (f"audio/{name}", name):
        if (folder / audio).is_dir():
            return audio
    archive = folder / "audio" / f"{name}.tar.gz"
    what = f"extract {archive} there" if archive.exists() else f"download audio/{name}.tar.gz and extract it there"
    raise PipelineError(f"{folder / 'audio' / name}: no such folder, expected the recordings of {name}.tsv; {what}")


def _item(folder: AnyPath, audio: str, line: dict[str, str], text: str) -> Item:
    """Makes an item. Up to three speakers, without names, read a sentence: its number is the group."""
    source = f"{audio}/{line['file_name']}"
    return Item((folder / source).stem, folder / source, text, "", line["id"], source)
