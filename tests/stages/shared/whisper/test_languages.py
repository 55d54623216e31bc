"""What people call a language -> the code that everything goes by; never another language's."""

import itertools
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langcodes import tag_is_valid
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from cache.errors import PipelineError
from pipeline.params import load_params
from stages.prepare.corpora.fleurs import CONFIGS
from stages.report.summary import language_title
from stages.shared.whisper.languages import language_code, language_name, taken_as, token_language

# As ISO 639 and BCP 47 have them: the same language in other letters.
SAME = """
    nb no; nob no; nor no; nb-NO no; nn nn; nno nn; nn-NO nn; jv jw; jav jw; iw he; heb he; fil tl; tgl tl; in id; ji yi;
    mo ro; mol ro; cmn zh; zho zh; chi zh; zh-TW zh; zh-CN zh; zh-Hant zh; zh_Hans_CN zh; cmn_hans_cn zh; zh-yue yue;
    yue-HK yue; pt-BR pt; pt_PT pt; es-419 es; en-GB en; cs_cz cs; cze cs; ces cs; YO yo; sv-SE sv; ne-NP ne; pa-IN pa;
    hy-AM hy; arb ar; pes fa; swh sw; lvs lv; ekk et; uzn uz; azj az; khk mn; npi ne; zsm ms; als sq; ydd yi; sr-Latn sr;
    uz-Cyrl uz; ca-valencia ca; hrv hr; bos bs; srp sr; hat ht; haw haw; oci oc
"""
# Languages of their own for which Whisper has no token, though some are near one that it knows.
OWN = """
    gn gn; grn gn; gug gug; rw rw; kin rw; ug ug; kmr kmr; ku ku; ckb ckb; ig ig; zu zu; ga ga; ga-IE ga; gsw gsw; bar bar;
    nds nds; sco sco; scn scn; ast ast; an an; arz arz; ary ary; wuu wuu; nan-tw nan; hak hak; cnr cnr; rm-vallader rm;
    fy-NL fy; tw tw; ti ti; dv dv; or or; ky ky; hsb hsb; pnb pnb; qaa qaa
"""
NAMES = {
    "Catalan": "ca", " catalan ": "ca", "Castilian": "es", "Valencian": "ca", "Norwegian Bokmål": "no", "Bokmål": "no",
    "norsk": "no", "Català": "ca", "Čeština": "cs", "中文": "zh", "Mandarin": "zh", "Kiswahili": "sw", "Moldavian": "ro",
    "Brazilian Portuguese": "pt", "Cantonese": "yue", "Guarani": "gn", "avañe'ẽ": "gn", "Kinyarwanda": "rw",
    "Uyghur": "ug", "Kurmanji": "kmr", "isiZulu": "zu", "Egyptian Arabic": "arz", "Swiss German": "gsw",
    "Fala": "fax", "Montenegrin": "cnr", "Irish": "ga", "Galician": "gl",
}  # fmt: skip


def pairs(table: str) -> list[tuple[str, str]]:
    return [(given, code) for given, code in (pair.split() for pair in table.split(";"))]


@pytest.mark.parametrize(("given", "code"), [*pairs(SAME), *pairs(OWN), *NAMES.items()])
def test_what_people_call_it(given, code):
    assert language_code(given) == code
    assert language_code(code) == code


@pytest.mark.parametrize("code", LANGUAGES)
def test_whispers_own_codes_and_names_are_themselves(code):
    assert language_code(code) == language_code(code.upper()) == code
    assert taken_as(code.upper(), code) is None


def test_whispers_names():
    assert {name: language_code(name) for name in TO_LANGUAGE_CODE} == TO_LANGUAGE_CODE


@pytest.mark.parametrize(
    "given", ["", " ", "a", "xx", "zz", "cz", "jp", "cn", "dk", "und", "mul", "zxx", "x-foo", "catlan", "klingonish",
              "Basa Jawa", "German dialect", "en-", "cs,gl", "1", "🙂", "../cs", "<|cs|>"],
)  # fmt: skip
def test_what_is_no_language(given):
    with pytest.raises(PipelineError, match="unknown language"):
        language_code(given)


@pytest.mark.parametrize(
    ("given", "codes"),
    [("sh", ["bs", "hr", "sr"]), ("hbs", ["bs", "hr", "sr"]), ("Serbo-Croatian", ["bs", "hr", "sr"]),
     ("zh-HK", ["yue", "zh"]), ("zh-MO", ["yue", "zh"]), ("zh_Hant_HK", ["yue", "zh"])],
)  # fmt: skip
def test_what_may_be_several(given, codes):
    with pytest.raises(PipelineError) as error:
        language_code(given)
    assert all(f"{code} (" in str(error.value) for code in codes)


def test_a_misspelt_name_is_a_hint_and_no_more():
    with pytest.raises(PipelineError, match="did you mean catalan"):
        language_code("catlan")


# Every code of two or three letters that is taken as another one of Whisper's, beside ISO 639's longer forms of it.
OTHER_SPELLINGS = """
    in>id iw>he ji>yi jv>jw mo>ro nb>no azj>az cmn>zh drh>mn drw>fa ekk>et fil>tl khk>mn lvs>lv mol>ro nob>no npi>ne pbu>ps
    pes>fa plt>mg prs>fa scc>sr scr>hr swc>sw swh>sw tnf>fa uzn>uz ydd>yi zsm>ms als>sq arb>ar
"""
LONGER = """
    afr>af alb>sq amh>am ara>ar arm>hy asm>as aze>az bak>ba baq>eu bel>be ben>bn bod>bo bos>bs bre>br bul>bg bur>my cat>ca
    ces>cs chi>zh cym>cy cze>cs dan>da deu>de dut>nl ell>el eng>en est>et eus>eu fao>fo fas>fa fin>fi fra>fr fre>fr geo>ka
    ger>de glg>gl gre>el guj>gu hat>ht hau>ha heb>he hin>hi hrv>hr hun>hu hye>hy ice>is ind>id isl>is ita>it jav>jw jpn>ja
    kan>kn kat>ka kaz>kk khm>km kor>ko lao>lo lat>la lav>lv lin>ln lit>lt ltz>lb mac>mk mal>ml mao>mi mar>mr may>ms mkd>mk
    mlg>mg mlt>mt mon>mn mri>mi msa>ms mya>my nep>ne nld>nl nno>nn nor>no oci>oc pan>pa per>fa pol>pl por>pt pus>ps ron>ro
    rum>ro rus>ru san>sa sin>si slk>sk slo>sk slv>sl sna>sn snd>sd som>so spa>es sqi>sq srp>sr sun>su swa>sw swe>sv tam>ta
    tat>tt tel>te tgk>tg tgl>tl tha>th tib>bo tuk>tk tur>tr ukr>uk urd>ur uzb>uz vie>vi wel>cy yid>yi yor>yo zho>zh
"""


def test_no_code_is_taken_as_another_language():
    """All of them: what is not in the list above is Whisper's own, or keeps its own code, or is refused."""
    taken = set()
    letters = string.ascii_lowercase
    codes = map("".join, itertools.chain(itertools.product(letters, repeat=2), itertools.product(letters, repeat=3)))
    for called in filter(tag_is_valid, codes):
        try:
            code = language_code(called)
        except PipelineError:
            continue
        if code != called and code in LANGUAGES:
            taken.add(f"{called}>{code}")
    assert taken == {*OTHER_SPELLINGS.split(), *LONGER.split()}


@pytest.mark.parametrize("name", CONFIGS.values())
def test_the_names_of_fleurs(name):
    """`cs_cz`: their languages are those before the country, but for what Whisper calls otherwise."""
    code, own = language_code(name), name.partition("_")[0]
    assert code == {"nb": "no", "jv": "jw", "fil": "tl", "cmn": "zh"}.get(own, own)
    assert CONFIGS.get(code, name) == name


ODD_LETTERS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0xD800, 0xDCFF, 0xDFFF, 0x10FFFF)]


@pytest.mark.parametrize("text", [odd + end for odd in ODD_LETTERS for end in ("", "\x80", "\U00010000", "Catalan")])
def test_what_no_table_of_names_can_hold_is_a_refusal_or_left_out(text):
    """A NUL byte and half a surrogate make the library's tables fail; white space around a name is left out."""
    if text.strip() == "Catalan":
        assert language_code(text) == "ca"
    else:
        with pytest.raises(PipelineError, match="unknown language"):
            language_code(text)


@given(
    st.text(max_size=12)
    | st.text(ODD_LETTERS + list("aé𐀀"), max_size=5)
    | st.text("abcdefghijklmnopqrstuvwxyz-_", max_size=9)
)
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_code_that_stays_or_a_refusal(text):
    try:
        code = language_code(text)
    except PipelineError as error:
        assert len(str(error).splitlines()) <= 1 + len(text.splitlines())
    else:
        assert language_code(code) == code
        assert language_name(code)


def test_what_is_said_of_it():
    assert taken_as("nb", "no") == "nb: taken as Norwegian (no)"
    assert taken_as("cs_cz", "cs") == "cs_cz: taken as Czech (cs)"
    assert taken_as("grn", "gn") == "grn: taken as Guarani (gn)"
    for plain in ("no", "NO", "Norwegian", "norwegian "):
        assert taken_as(plain, "no") is None
    assert taken_as("Guarani", "gn") is None


def test_a_token_is_one_of_whispers():
    assert token_language("Spanish") == token_language("es-MX") == "es"
    with pytest.raises(PipelineError, match=r"no token for Guarani \(gn\).*'gn' as a token"):
        token_language("gn")


def test_titles_in_the_report():
    assert [language_title(code) for code in ("cs", "gn", "kmr", "qaa", "made up")] == [
        "Czech (cs)", "Guarani (gn)", "Northern Kurdish (kmr)", "qaa", "made up",
    ]  # fmt: skip


# In the parameters


@pytest.mark.parametrize(
    ("key", "parts"),
    [("nb", ["Norwegian", "write no"]), ("jv", ["write jw"]), ("cs_cz", ["write cs"]), ("Catalan", ["write ca"]),
     ("grn", ["write gn"]), ("catlan", ["did you mean catalan"]), ("sh", ["bs", "hr", "sr"])],
)  # fmt: skip
def test_a_key_is_the_code_that_its_folders_are_named_by(key, parts, tmp_path):
    """DVC takes the keys as they stand, so that a second name would be a second folder."""
    path = tmp_path / "params.yaml"
    path.write_text(f"languages:\n  {key}: {{corpus: {{corpus: manifest, path: r.csv}}}}\n", encoding="utf-8")
    with pytest.raises(PipelineError) as error:
        load_params(path, {})
    assert all(part in str(error.value) for part in [str(path), "languages", *parts])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["no", "jw", "gn", "kmr", "zh"])
def test_a_key_that_is_the_code(key, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(f"languages:\n  {key}: {{token: Spanish}}\n")
    assert load_params(path, {}).languages[key].token == "es"


@pytest.mark.parametrize("token", ["gn", "klingonish", "''", "5"])
def test_a_token_that_is_none(token, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(f"languages:\n  rw: {{token: {token}}}\n")
    with pytest.raises(PipelineError, match="languages.rw.token"):
        load_params(path, {})
